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

{{- /* Refuses what the schema cannot: values that do not go together, which the programs would refuse at each start. */ -}}
{{- define "culvert.check" -}}
{{- $faults := list -}}
{{- if and (eq .Values.agent.sameNode "short") (eq (toString .Values.netpol.enforce) "false") -}}
{{- $faults = append $faults "agent.sameNode: short passes by the CNI's NetworkPolicies: it needs netpol.enforce=true, or none" -}}
{{- end -}}
{{- range splitList "," .Values.logLevel -}}
{{- if not (regexMatch "^((.*=|[^=]*:)?(?i:error|warn|info|debug|trace|off))?$" .) -}}
{{- $faults = append $faults (printf "logLevel: %q: want error, warn, info, debug, trace or off, or scope=level" .) -}}
{{- end -}}
{{- end -}}
{{- $start := toDate "2006-01-02" "2000-01-01" -}}
{{- $zero := $start.Unix -}}
{{- $ttl := sub (mustDateModify .Values.ca.ttl $start).Unix $zero -}}
{{- $maxTTL := sub (mustDateModify .Values.ca.maxTTL $start).Unix $zero -}}
{{- $rootTTL := sub (mustDateModify .Values.ca.rootTTL $start).Unix $zero -}}
{{- if lt $ttl 60 -}}
{{- $faults = append $faults (printf "ca.ttl: %s is less than a minute" .Values.ca.ttl) -}}
{{- end -}}
{{- if gt $ttl $maxTTL -}}
{{- $faults = append $faults (printf "ca.ttl: %s is more than ca.maxTTL, %s" .Values.ca.ttl .Values.ca.maxTTL) -}}
{{- end -}}
{{- /* Two rotations, each of which takes maxTTL twice; another flag shortens that. */ -}}
{{- if and (lt $rootTTL (mul 4 $maxTTL)) (not (contains "--ca-rotation-settle" (join " " .Values.controller.extraArgs))) -}}
{{- $faults = append $faults (printf "ca.rootTTL: %s is less than four times ca.maxTTL, %s" .Values.ca.rootTTL .Values.ca.maxTTL) -}}
{{- end -}}
{{- if gt (sub (mustDateModify .Values.agent.leaveTimeout $start).Unix $zero) 2592000 -}}
{{- $faults = append $faults (printf "agent.leaveTimeout: %s is more than 720h" .Values.agent.leaveTimeout) -}}
{{- end -}}
{{- $replicas := int .Values.controller.replicas -}}
{{- $least := toString .Values.controller.minAvailable -}}
{{- $stay := int $least -}}
{{- if hasSuffix "%" $least -}}
{{- $stay = int (div (add (mul (int (trimSuffix "%" $least)) $replicas) 99) 100) -}}
{{- end -}}
{{- if and (gt $replicas 1) (ge $stay $replicas) -}}
{{- $faults = append $faults (printf "controller.minAvailable: %s of %d replicas keep every node with one of them from being emptied" $least $replicas) -}}
{{- end -}}
{{- if $faults -}}
{{- fail (join "; " $faults) -}}
{{- end -}}
{{- end -}}
