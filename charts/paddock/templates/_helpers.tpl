{{- define "paddock.labels" -}}
app.kubernetes.io/name: paddock
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "paddock.selector" -}}
app.kubernetes.io/name: paddock
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "paddock.serviceAccount" -}}
paddock-operator
{{- end }}

{{- define "paddock.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "paddock.serviceAccount" . }}
{{- end }}
