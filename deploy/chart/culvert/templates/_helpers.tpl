{{- define "culvert.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "culvert.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: culvert-{{ .root.Chart.Version }}
{{- end -}}

{{- define "culvert.rootNamespace" -}}
{{ .Values.rootNamespace | default .Release.Namespace }}
{{- end -}}

{{- define "culvert.settings" -}}
TRUST_DOMAIN: {{ .Values.trustDomain | quote }}
TRUST_DOMAIN_ALIASES: {{ join "," .Values.trustDomainAliases | quote }}
CLUSTER_DOMAIN: {{ .Values.clusterDomain | quote }}
CLUSTER_ID: {{ .Values.clusterID | quote }}
NETWORK: {{ .Values.network | quote }}
CULVERT_ROOT_NAMESPACE: {{ include "culvert.rootNamespace" . | quote }}
CULVERT_LENIENT_L7: {{ .Values.lenientL7 | quote }}
{{- end -}}
