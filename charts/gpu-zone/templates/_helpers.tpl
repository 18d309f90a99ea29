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
