-- Health of a ScriptRun for Argo CD: resource.customizations.health.paddock.dev_ScriptRun in the ConfigMap argocd-cm.
local health = { status = "Progressing", message = "not seen by Paddock yet" }
if obj.status == nil or obj.status.conditions == nil then
  return health
end
if obj.status.message ~= nil then
  health.message = obj.status.message
end
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Finished" and condition.status == "True" then
    if obj.status.phase == "Succeeded" then
      health.status = "Healthy"
    else
      health.status = "Degraded"
    end
  end
end
return health
