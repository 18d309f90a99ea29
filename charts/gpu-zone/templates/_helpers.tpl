{{/* The name that everything begins with. */}}
{{- define "gpu-zone.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What finds the pods of a component. Call with (dict "root" $ "component" "agent"). */}}
{{- define "gpu-zone.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The same and what changes with a release. */}}
{{- define "gpu-zone.labels" -}}
{{ include "gpu-zone.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: gpu-zone
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* An image. Call with (dict "root" $ "image" .Values.agent.image). A digest is stronger than a tag. */}}
{{- define "gpu-zone.image" -}}
{{- $repository := printf "%s/%s" .root.Values.image.registry .image.repository -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Where a pod may run. Call with a component's values. */}}
{{- define "gpu-zone.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The tenants' libcuda.so.1, as nodes see it. A folder for each release: what containers that
     run have mounted is never written over. */}}
{{- define "gpu-zone.library" -}}
{{- printf "%s/library/%s/libgpuzone_cuda.so" .Values.paths.state .Chart.AppVersion -}}
{{- end -}}

{{/* Of the extender's certificate, and of the one that the scheduler shows it. */}}
{{- define "gpu-zone.serverSecret" -}}
{{- .Values.scheduler.tls.serverSecret | default (printf "%s-scheduler-ext-tls" (include "gpu-zone.name" .)) -}}
{{- end -}}
{{- define "gpu-zone.clientSecret" -}}
{{- .Values.scheduler.tls.clientSecret | default (printf "%s-scheduler-ext-client" (include "gpu-zone.name" .)) -}}
{{- end -}}

{{/* What kube-scheduler is told of the extender. Call with (dict "root" $ "tls" FOLDER). */}}
{{- define "gpu-zone.extender" -}}
{{- $name := printf "%s-scheduler-ext" (include "gpu-zone.name" .root) -}}
- urlPrefix: https://{{ $name }}.{{ .root.Release.Namespace }}.svc:8443
  filterVerb: filter
  prioritizeVerb: prioritize
  preemptVerb: preempt
  bindVerb: bind
  # Enough for its order to lead among the scheduler's own scores.
  weight: {{ .root.Values.scheduler.weight }}
  enableHTTPS: true
  nodeCacheCapable: true
  # Pods that ask for GPUs wait while the extender is away.
  ignorable: false
  # More than the pods of a group wait for each other.
  httpTimeout: {{ add 10 .root.Values.scheduler.groupSeconds }}s
  tlsConfig:
    caFile: {{ .tls }}/ca.crt
    certFile: {{ .tls }}/tls.crt
    keyFile: {{ .tls }}/tls.key
  managedResources:
    - name: {{ .root.Values.resources.gpu }}
    - name: {{ .root.Values.resources.memory }}
      ignoredByScheduler: true
    - name: {{ .root.Values.resources.memoryPercent }}
      ignoredByScheduler: true
    - name: {{ .root.Values.resources.share }}
      ignoredByScheduler: true
    - name: {{ .root.Values.resources.passthrough }}
    {{- range .root.Values.resources.migProfiles }}
    - name: {{ $.root.Values.resources.migPrefix }}{{ . }}
    {{- end }}
    {{- range .root.Values.resources.vgpuTypes }}
    - name: {{ $.root.Values.resources.vgpuPrefix }}{{ . }}
    {{- end }}
{{- if .root.Values.scheduler.allPods }}
# The same extender says which node is best for pods without GPUs, too: they take processors and memory
# that GPUs need. What it does not answer in time does not count.
- urlPrefix: https://{{ $name }}.{{ .root.Release.Namespace }}.svc:8443
  prioritizeVerb: prioritize
  weight: {{ .root.Values.scheduler.weight }}
  enableHTTPS: true
  nodeCacheCapable: true
  ignorable: true
  httpTimeout: 1s
  tlsConfig:
    caFile: {{ .tls }}/ca.crt
    certFile: {{ .tls }}/tls.crt
    keyFile: {{ .tls }}/tls.key
{{- end }}
{{- end -}}
