{{/* Names and labels. Helm's own limits: 63 characters, no dash at the end. */}}
{{- define "sconce.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "sconce.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sconce.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- /* Leaves eleven characters: a StatefulSet labels its pods with its name and a hash of ten. */ -}}
{{- $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "sconce.headless" -}}
{{ include "sconce.fullname" . }}-headless
{{- end }}

{{/* "true" where there is such a Service: asked for, or what a StatefulSet names its pods by. */}}
{{- define "sconce.hasHeadless" -}}
{{- or .Values.service.headless (eq (include "sconce.stateful" .) "true") -}}
{{- end }}

{{- define "sconce.serviceAccount" -}}
{{- default (ternary (include "sconce.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end }}

{{/* What selects the pods; fixed for the life of a workload. */}}
{{- define "sconce.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sconce.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "sconce.labels" -}}
{{ include "sconce.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sconce
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Endpoint pickers read our metrics by the names of vLLM, and tell engines apart by this label. */}}
{{- define "sconce.podLabels" -}}
{{ include "sconce.labels" . }}
{{- if .Values.vllmCompatibility }}
llm-d.ai/engine-type: vllm
{{- end }}
{{- with .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sconce.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* "true" where pods have a volume each, which only a StatefulSet can give them. */}}
{{- define "sconce.stateful" -}}
{{- and .Values.diskTier.enabled (eq .Values.diskTier.kind "claim") -}}
{{- end }}

{{- define "sconce.kind" -}}
{{- ternary "StatefulSet" "Deployment" (eq (include "sconce.stateful" .) "true") -}}
{{- end }}

{{/* Everything that the server may take to stop, and ten seconds. */}}
{{- define "sconce.gracePeriod" -}}
{{- $save := ternary .Values.shutdown.saveSeconds 0 .Values.diskTier.enabled -}}
{{- add .Values.shutdown.withdrawalSeconds .Values.shutdown.drainSeconds $save 10 -}}
{{- end }}

{{/* "true" where callers have to say who they are. */}}
{{- define "sconce.auth" -}}
{{- or (ne .Values.auth.secretName "") (dig "server" "auth" "certificates" false .Values.settings) -}}
{{- end }}

{{/* "true" where even who asks for health has to. */}}
{{- define "sconce.healthGuarded" -}}
{{- $exempt := dig "server" "auth" "exempt" (list "health") .Values.settings -}}
{{- and (eq (include "sconce.auth" .) "true") (not (has "health" $exempt)) -}}
{{- end }}
