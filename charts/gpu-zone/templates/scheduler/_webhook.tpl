{{/* Whether a pod asks by one of our resources, as CEL. Call with the root. */}}
{{- define "gpu-zone.asksForGpus" -}}
{{- $names := list .Values.resources.gpu .Values.resources.memory .Values.resources.memoryPercent .Values.resources.share .Values.resources.passthrough -}}
(object.spec.containers + object.spec.?initContainers.orValue([])).exists(c, c.?resources.limits.orValue({}).exists(r, r in ['{{ join "', '" $names }}'] || r.startsWith('{{ .Values.resources.migPrefix }}') || r.startsWith('{{ .Values.resources.vgpuPrefix }}')))
{{- end -}}

{{/* How the API server reaches a path of the webhook. Call with (dict "root" $ "path" PATH "ca" BASE64). */}}
{{- define "gpu-zone.webhookClient" -}}
caBundle: {{ .ca }}
service:
  name: {{ include "gpu-zone.name" .root }}-webhook
  namespace: {{ .root.Release.Namespace }}
  port: 443
  path: {{ .path }}
{{- end -}}

{{/* What the API server asks the webhook about. Pods without GPUs never come there.
     Call with (dict "root" $ "ca" BASE64). */}}
{{- define "gpu-zone.webhooks" -}}
{{- $labels := dict "root" .root "component" "scheduler-ext" -}}
{{- $hook := .root.Values.scheduler.webhook -}}
{{- $name := printf "%s-webhook" (include "gpu-zone.name" .root) -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata:
  name: {{ $name }}
  labels: {{- include "gpu-zone.labels" $labels | nindent 4 }}
webhooks:
  - name: pods.gpuzone.dev
    admissionReviewVersions: [v1]
    sideEffects: None
    timeoutSeconds: {{ $hook.timeoutSeconds }}
    failurePolicy: {{ $hook.validating.failurePolicy }}
    clientConfig: {{- include "gpu-zone.webhookClient" (dict "root" .root "path" "/validate" "ca" .ca) | nindent 6 }}
    rules:
      - apiGroups: [""]
        apiVersions: [v1]
        resources: [pods]
        operations: [CREATE, UPDATE]
        scope: Namespaced
    matchConditions:
      # Of those that are there, only a placement that changes.
      - name: asks-for-gpus-or-writes-a-placement
        expression: >-
          object.metadata.?annotations[?'gpuzone.dev/placement'] !=
          (request.operation == 'UPDATE' ? oldObject.metadata.?annotations[?'gpuzone.dev/placement'] : optional.none())
          || (request.operation == 'CREATE' && {{ include "gpu-zone.asksForGpus" .root }})
{{- if $hook.mutating.enabled }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata:
  name: {{ $name }}
  labels: {{- include "gpu-zone.labels" $labels | nindent 4 }}
webhooks:
  - name: scheduler.gpuzone.dev
    admissionReviewVersions: [v1]
    sideEffects: None
    # A webhook that comes later may add the GPUs.
    reinvocationPolicy: IfNeeded
    timeoutSeconds: {{ $hook.timeoutSeconds }}
    failurePolicy: {{ $hook.mutating.failurePolicy }}
    clientConfig: {{- include "gpu-zone.webhookClient" (dict "root" .root "path" "/mutate" "ca" .ca) | nindent 6 }}
    rules:
      - apiGroups: [""]
        apiVersions: [v1]
        resources: [pods]
        operations: [CREATE]
        scope: Namespaced
    matchConditions:
      - name: asks-for-gpus
        expression: >-
          {{ include "gpu-zone.asksForGpus" .root }}
{{- end }}
{{- end -}}
