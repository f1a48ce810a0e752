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

{{- define "paddock.image" -}}
{{ include "paddock.reference" (list .Values.image .) }}
{{- end }}

{{- /* An image by its digest, or else by its tag: (list {repository, tag, digest} $) */ -}}
{{- define "paddock.reference" -}}
{{- $image := index . 0 -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default (index . 1).Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Where pods of the operator's image go, and what they are pulled with. */ -}}
{{- define "paddock.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "paddock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "paddock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The pod that examines the cluster once. */ -}}
{{- define "paddock.doctorPod" -}}
serviceAccountName: paddock-doctor
restartPolicy: Never
{{- include "paddock.scheduling" . }}
securityContext: {{- include "paddock.podSecurity" . | nindent 2 }}
containers:
  - name: doctor
    image: {{ include "paddock.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - doctor
      - {{ .Release.Namespace }}-doctor
      - paddock-doctor
      - {{ .Values.doctor.runtime.name }}
      {{- if (.Values.egress).create }}
      - kubernetes.default.svc.{{ .Values.doctor.clusterDomain }}:443
      {{- end }}
    env:
      - name: POD_NAMESPACE
        valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
      - name: SANDBOX_RUNTIME_CLASS
        value: {{ .Values.sandbox.runtimeClass }}
      {{- if .Values.sandbox.hasInterface }}
      - name: SANDBOX_HAS_INTERFACE
        value: "true"
      {{- end }}
    resources: {{- toYaml .Values.resources | nindent 6 }}
    securityContext: {{- include "paddock.containerSecurity" . | nindent 6 }}
{{- end }}

{{- /* Whether the baseline selects namespaces by labels alone, so that one can be made that it selects. */ -}}
{{- define "paddock.canBeTried" -}}
{{- $selector := .Values.baseline.namespaceSelector -}}
{{- if and .Values.baseline.create (not $selector.matchExpressions) }}true{{ end -}}
{{- end }}

{{- /* Who wrote the spec of a policy: whoever writes it now, else who is known. Where nobody is known, whoever writes anything takes it over: the
chart's own policy is there a moment before what stamps it. */}}
{{- define "paddock.authorVariables" -}}
- name: before
  expression: "oldObject != null && has(oldObject.metadata.annotations) ? oldObject.metadata.annotations : {}"
- name: isKnown
  expression: "['paddock.dev/author', 'paddock.dev/author-uid', 'paddock.dev/author-groups'].all(stamp, stamp in variables.before) && variables.before['paddock.dev/author'] != ''"
- name: isWritten
  expression: "request.operation == 'CREATE' || object.spec != oldObject.spec || !variables.isKnown"
- name: author
  expression: "variables.isWritten ? request.userInfo.username : variables.before['paddock.dev/author']"
- name: authorUid
  expression: "variables.isWritten ? (has(request.userInfo.uid) ? request.userInfo.uid : '') : variables.before['paddock.dev/author-uid']"
- name: authorGroups
  expression: "variables.isWritten ? ({{ include "paddock.groups" . }}) : variables.before['paddock.dev/author-groups']"
{{- end }}

{{- /* A stamp of who makes the request is three annotations that begin with one name: paddock.dev/requester, paddock.dev/approver. */}}
{{- define "paddock.groups" -}}
has(request.userInfo.groups) ? request.userInfo.groups.map(group, group.replace('%', '%25').replace(',', '%2C')).join(',') : ''
{{- end }}

{{- define "paddock.stampAnnotations" -}}
'{{ . }}': request.userInfo.username,
'{{ . }}-uid': has(request.userInfo.uid) ? request.userInfo.uid : '',
'{{ . }}-groups': {{ include "paddock.groups" . }}
{{- end }}

{{- define "paddock.stampVariables" -}}
- name: stamps
  expression: "['{{ . }}', '{{ . }}-uid', '{{ . }}-groups']"
- name: now
  expression: "has(object.metadata.annotations) ? object.metadata.annotations : {}"
- name: before
  expression: "oldObject != null && has(oldObject.metadata.annotations) ? oldObject.metadata.annotations : {}"
- name: groups
  expression: "{{ include "paddock.groups" . }}"
{{- end }}

{{- /* Nobody brings a stamp along, and nobody changes one. */}}
{{- define "paddock.stampValidations" -}}
- expression: >-
    request.operation != 'CREATE' || (
      variables.stamps.all(stamp, stamp in variables.now)
      && variables.now['{{ . }}'] == request.userInfo.username
      && variables.now['{{ . }}-uid'] == (has(request.userInfo.uid) ? request.userInfo.uid : '')
      && variables.now['{{ . }}-groups'] == variables.groups)
  message: the annotations {{ . }}… are set by the cluster and must not be given
  reason: Forbidden
- expression: >-
    request.operation != 'UPDATE' || variables.stamps.all(stamp,
      (stamp in variables.now) == (stamp in variables.before)
      && (!(stamp in variables.now) || variables.now[stamp] == variables.before[stamp]))
  message: the annotations {{ . }}… cannot be changed
  reason: Forbidden
{{- end }}

{{- /* A first script for a runtime, by its interpreter. */}}
{{- define "paddock.hello" -}}
{{- $interpreter := base (first .command) -}}
{{- if hasPrefix "python" $interpreter -}}
print("hello")
{{- else if eq $interpreter "node" -}}
console.log("hello")
{{- else if has $interpreter (list "sh" "bash" "ash" "dash" "busybox") -}}
echo hello
{{- else -}}
THE SCRIPT, for {{ join " " .command }}
{{- end -}}
{{- end }}

{{- /* What stamps: Policy or Webhook. */}}
{{- define "paddock.stamps" -}}
{{- if ne .Values.admission.stamps "Auto" -}}
{{ .Values.admission.stamps }}
{{- else if semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version -}}
Policy
{{- else -}}
Webhook
{{- end -}}
{{- end }}

{{- /* Stamps of an author that differ from those before: whoever writes them over gets them back. */}}
{{- define "paddock.authorIsTouched" -}}
request.operation == 'CREATE' || object.spec != oldObject.spec
|| ['paddock.dev/author', 'paddock.dev/author-uid', 'paddock.dev/author-groups'].exists(stamp,
  !has(object.metadata.annotations) || !(stamp in object.metadata.annotations)
  || !has(oldObject.metadata.annotations) || !(stamp in oldObject.metadata.annotations)
  || object.metadata.annotations[stamp] != oldObject.metadata.annotations[stamp])
|| oldObject.metadata.annotations['paddock.dev/author'] == ''
{{- end }}
