{{- define "wgpy.labels" -}}
app.kubernetes.io/name: wgpy
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The objects of a file of the kustomize base or of one of its components, in the release's namespace and with its labels.
       Takes a list: the root, the file, more labels. */}}
{{- define "wgpy.objects" -}}
{{- $root := index . 0 }}
{{- range splitList "\n---\n" ($root.Files.Get (index $ 1) | required (printf "the chart lacks %s" (index $ 1))) }}
{{- $object := . | replace "kube-system" $root.Release.Namespace | fromYaml }}
{{- $labels := mergeOverwrite (dict) (include "wgpy.labels" $root | fromYaml) (index $ 2) }}
{{- $_ := set $object.metadata "labels" $labels }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}

{{- define "wgpy.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "wgpy.probe" -}}
httpGet:
  {{- if not .expose }}
  host: 127.0.0.1
  {{- end }}
  port: {{ .port }}
  path: {{ .path }}
{{- end }}

{{- define "wgpy.securityContext" -}}
runAsUser: 0
runAsGroup: 0
allowPrivilegeEscalation: {{ .privileged }}
readOnlyRootFilesystem: true
{{- if .privileged }}
privileged: true
{{- end }}
capabilities:
  drop: [ALL]
  add: [NET_ADMIN{{ if .netRaw }}, NET_RAW{{ end }}]
{{- end }}

{{- define "wgpy.metricsHost" -}}
- name: METRICS_HOST
  {{- if .Values.metrics.expose }}
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
  {{- else }}
  value: 127.0.0.1
  {{- end }}
{{- end }}
