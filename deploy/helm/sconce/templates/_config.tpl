{{/*
The configuration file of the server: `settings` and `models` as they are, and over them what other
values decide. Written by hand instead of with toToml, which turns every number into a float.
*/}}
{{- define "sconce.config" -}}
{{- $host := .Values.ports.host -}}
{{- $server := dict
  "listen" (list (printf "%s:%d" $host (int .Values.ports.grpc)))
  "admin" (printf "%s:%d" $host (int .Values.ports.admin))
  "withdrawal" (printf "%ds" (int .Values.shutdown.withdrawalSeconds))
  "drain" (printf "%ds" (int .Values.shutdown.drainSeconds)) -}}
{{- if .Values.tls.secretName -}}
{{- $tls := dict "certificate" "/run/secrets/sconce/tls/tls.crt" "key" "/run/secrets/sconce/tls/tls.key" -}}
{{- if .Values.tls.clientCertificates -}}
{{- $_ := set $tls "client_ca" "/run/secrets/sconce/tls/ca.crt" -}}
{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- if .Values.auth.secretName -}}
{{- $_ := set $server "auth" (dict "tokens" (printf "/run/secrets/sconce/auth/%s" .Values.auth.key)) -}}
{{- end -}}
{{- $compat := dict "vllm" .Values.vllmCompatibility -}}
{{- $own := dict "server" $server "models" .Values.models "compat" $compat -}}
{{- if .Values.gpu.enabled -}}
{{- /* A pod that was given a GPU says so if it cannot use it, instead of computing on the processor. */ -}}
{{- $device := dig "engine" "device" "cuda" .Values.settings -}}
{{- $_ := set $own "engine" (dict "device" $device) -}}
{{- end -}}
{{- if .Values.diskTier.enabled -}}
{{- $budget := include "sconce.diskBudget" .Values.diskTier.size -}}
{{- $save := printf "%ds" (int .Values.shutdown.saveSeconds) -}}
{{- $_ := set $own "cache" (dict "directory" "/var/lib/sconce/cache" "disk" $budget "save_time_max" $save) -}}
{{- end -}}
{{- $config := mustMergeOverwrite (deepCopy .Values.settings) $own -}}
{{- range $name, $table := $config -}}
{{- include "sconce.tomlTable" (dict "path" (list $name) "table" $table) -}}
{{- end -}}
{{- end }}

{{/* A table: its own values, then the tables in it. Nothing for one that has neither. */}}
{{- define "sconce.tomlTable" -}}
{{- $path := .path -}}
{{- $values := "" -}}
{{- range $key, $value := .table -}}
{{- if not (kindIs "map" $value) -}}
{{- $values = printf "%s%s = %s\n" $values (include "sconce.tomlKey" $key) (include "sconce.tomlValue" $value) -}}
{{- end -}}
{{- end -}}
{{- if $values -}}
{{- $keys := list -}}
{{- range $path -}}
{{- $keys = append $keys (include "sconce.tomlKey" .) -}}
{{- end -}}
{{- printf "[%s]\n%s\n" (join "." $keys) $values -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- include "sconce.tomlTable" (dict "path" (append $path $key) "table" $value) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "sconce.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* Texts, truth values and lists are written in TOML as in JSON. Numbers are whole in every setting. */}}
{{- define "sconce.tomlValue" -}}
{{- if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) }}{{ int64 . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* Nine tenths of a volume, in MiB: the rest is for the file system and the names of snapshots. */}}
{{- define "sconce.diskBudget" -}}
{{- $factor := get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[MGT]i$" .) -}}
{{- printf "%dMiB" (div (mul (atoi (regexFind "^[0-9]+" .)) $factor 9) 10) -}}
{{- end }}
