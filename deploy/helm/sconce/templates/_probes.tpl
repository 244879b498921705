{{/*
Probes. `liveness` says that the process answers, `readiness` that a model is ready and the server does
not drain. Kubelets speak gRPC only in plain text and show no token; where that does not do, they ask the
admin port by HTTP.
*/}}
{{- define "sconce.probes" -}}
{{- $kind := .Values.probes.kind -}}
{{- $guarded := eq (include "sconce.healthGuarded" .) "true" -}}
{{- if eq $kind "auto" -}}
{{- $kind = ternary "http" "grpc" (or (ne .Values.tls.secretName "") $guarded) -}}
{{- end -}}
{{- if and (eq $kind "grpc") .Values.tls.secretName -}}
{{- fail "probes.kind grpc does not go with tls.secretName: kubelets ask in plain text" -}}
{{- end -}}
{{- if and (eq $kind "grpc") $guarded -}}
{{- fail "probes.kind grpc needs health in settings.server.auth.exempt: kubelets show no token" -}}
{{- end -}}
startupProbe:
  {{- include "sconce.probe" (list $ $kind "liveness" "/livez") | nindent 2 }}
  {{- toYaml .Values.probes.startup | nindent 2 }}
readinessProbe:
  {{- include "sconce.probe" (list $ $kind "readiness" "/readyz") | nindent 2 }}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
livenessProbe:
  {{- include "sconce.probe" (list $ $kind "liveness" "/livez") | nindent 2 }}
  {{- toYaml .Values.probes.liveness | nindent 2 }}
{{- end }}

{{- define "sconce.probe" -}}
{{- $root := index . 0 -}}
{{- if eq (index . 1) "grpc" -}}
grpc:
  port: {{ $root.Values.ports.grpc }}
  service: {{ index . 2 }}
{{- else -}}
httpGet:
  port: admin
  path: {{ index . 3 }}
{{- end }}
{{- end }}
