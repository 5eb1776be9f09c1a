{{- define "niyama.name" -}}
{{- if eq .Release.Name "niyama" }}niyama{{ else }}{{ printf "%s-niyama" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What every object has, and what selects the servers' pods. The name is the job of the alerts. */}}
{{- define "niyama.labels" -}}
{{ include "niyama.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "niyama.selector" -}}
app.kubernetes.io/name: niyama
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "niyama.smg.selector" -}}
app.kubernetes.io/name: niyama-smg
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The user of deploy/Dockerfile, and nothing that it does not need. */}}
{{- define "niyama.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "niyama.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Whole cores of a quantity such as 4 or 3500m. */}}
{{- define "niyama.cores" -}}
{{- if hasSuffix "m" . }}{{ div (trimSuffix "m" . | int) 1000 }}{{ else }}{{ int . }}{{ end }}
{{- end }}

{{/* Seconds from the end of a pod's life to SIGKILL; server/ending.py has the 15 (REST_S). */}}
{{- define "niyama.graceSeconds" -}}
{{ add .preStopSeconds .seconds 15 .spareSeconds }}
{{- end }}

{{/* What does not fit together is told before anything is sent to the cluster. */}}
{{- define "niyama.check" -}}
{{- $requests := .Values.resources.requests | default dict }}
{{- $limits := .Values.resources.limits | default dict }}
{{- $cores := include "niyama.cores" (get $requests "cpu" | default 0 | toString) | int }}
{{- if and $cores (lt $cores (add .Values.frontends 1 | int)) }}
{{- fail (printf "resources.requests.cpu: %d front ends and an engine want %d cores" (int .Values.frontends) (add .Values.frontends 1 | int)) }}
{{- end }}
{{- if and (gt (int .Values.frontends) 1) (not (hasPrefix "cuda" .Values.device)) (not $cores) }}
{{- fail "resources.requests.cpu: with several front ends on a CPU say how many cores there are" }}
{{- end }}
{{- if and (hasPrefix "cuda" .Values.device) (ne (get $limits "nvidia.com/gpu" | toString) "1") }}
{{- fail "resources.limits: a pod is one engine on one GPU: nvidia.com/gpu: 1" }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling: minReplicas is above maxReplicas" }}
{{- end }}
{{- with .Values.identity }}
{{- if not (or .tokensSecret .clientCaSecret .allowAnonymous) }}
{{- fail "identity: name tokensSecret or clientCaSecret, or say allowAnonymous: true" }}
{{- end }}
{{- if not (or .tlsSecret .allowPlaintext) }}
{{- fail "identity: name tlsSecret, or say allowPlaintext: true" }}
{{- end }}
{{- if and .clientCaSecret (not .tlsSecret) }}
{{- fail "identity: clientCaSecret wants tlsSecret" }}
{{- end }}
{{- end }}
{{- if .Values.smg.enabled }}
{{- if not .Values.smg.image }}
{{- fail "smg.image: say which" }}
{{- end }}
{{- if not .Values.smg.controlPlaneSecret }}
{{- fail "smg.controlPlaneSecret: without a key whoever may call it may also send its calls elsewhere" }}
{{- end }}
{{- if or .Values.identity.tokensSecret .Values.identity.tlsSecret }}
{{- fail "smg: it shows its workers no token and speaks no TLS to them: allowAnonymous and allowPlaintext, behind the network policy" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "niyama.secrets" -}}
{{- with .Values.identity }}
{{- $sources := list
      (list .tokensSecret "tokens.toml")
      (list .tlsSecret "tls.crt" "tls.key")
      (list .clientCaSecret "ca.crt")
      (list .operatorSecret "operator.token") }}
{{- range $sources }}
{{- if first . }}
- secret:
    name: {{ first . }}
    items:
      {{- range rest . }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
