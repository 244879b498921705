{{/* The pod template, the same in a Deployment and in a StatefulSet. */}}
{{- define "sconce.pod" -}}
metadata:
  labels:
    {{- include "sconce.podLabels" . | nindent 4 }}
  annotations:
    # A pod reads its settings once, so new settings are new pods.
    checksum/config: {{ include "sconce.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sconce.serviceAccount" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "sconce.gracePeriod" . }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and .Values.gpu.enabled .Values.gpu.runtimeClassName }}
  runtimeClassName: {{ .Values.gpu.runtimeClassName }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := .Values.tolerations }}
  {{- if .Values.gpu.enabled }}
  {{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
  {{- end }}
  {{- with $tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sconce.selectorLabels" . | nindent 10 }}
    {{- end }}
  containers:
    {{- include "sconce.container" . | nindent 4 }}
  volumes:
    {{- include "sconce.volumes" . | nindent 4 }}
{{- end }}

{{- define "sconce.container" -}}
- name: sconce
  image: {{ include "sconce.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [serve, --config, /etc/sconce/config.toml]
  {{- $env := .Values.env }}
  {{- if .Values.gpu.enabled }}
  {{- $env = append $env (dict "name" "CUDA_CACHE_PATH" "value" "/var/cache/sconce/driver") }}
  {{- end }}
  {{- with $env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: grpc
      containerPort: {{ .Values.ports.grpc }}
    - name: admin
      containerPort: {{ .Values.ports.admin }}
  {{- include "sconce.probes" . | nindent 2 }}
  resources:
    {{- include "sconce.resources" . | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
  volumeMounts:
    - name: config
      mountPath: /etc/sconce
      readOnly: true
    {{- if ne .Values.modelVolume.kind "none" }}
    - name: models
      mountPath: /models
      readOnly: true
      {{- with .Values.modelVolume.subPath }}
      subPath: {{ . }}
      {{- end }}
    {{- end }}
    {{- if .Values.diskTier.enabled }}
    - name: cache
      mountPath: /var/lib/sconce
    {{- end }}
    {{- if .Values.gpu.enabled }}
    - name: driver-cache
      mountPath: /var/cache/sconce
    {{- end }}
    {{- if .Values.tls.secretName }}
    - name: tls
      mountPath: /run/secrets/sconce/tls
      readOnly: true
    {{- end }}
    {{- if .Values.auth.secretName }}
    - name: auth
      mountPath: /run/secrets/sconce/auth
      readOnly: true
    {{- end }}
{{- end }}

{{/* Values may name limits of their own; a GPU is added to them. */}}
{{- define "sconce.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.enabled -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $_ := set $limits "nvidia.com/gpu" 1 -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- if and .Values.diskTier.enabled (eq .Values.diskTier.kind "ephemeral") -}}
{{- $requests := default (dict) $resources.requests -}}
{{- $_ := set $requests "ephemeral-storage" .Values.diskTier.size -}}
{{- $_ := set $resources "requests" $requests -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "sconce.volumes" -}}
- name: config
  configMap:
    name: {{ include "sconce.fullname" . }}
{{- if eq .Values.modelVolume.kind "claim" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ required "modelVolume.claim is needed for modelVolume.kind claim" .Values.modelVolume.claim }}
    readOnly: true
{{- else if eq .Values.modelVolume.kind "image" }}
- name: models
  image:
    reference: {{ required "modelVolume.image.reference is needed for modelVolume.kind image" .Values.modelVolume.image.reference }}
    pullPolicy: {{ .Values.modelVolume.image.pullPolicy }}
{{- end }}
{{- if and .Values.diskTier.enabled (eq .Values.diskTier.kind "ephemeral") }}
- name: cache
  emptyDir:
    sizeLimit: {{ .Values.diskTier.size }}
{{- end }}
{{- if .Values.gpu.enabled }}
# What the driver compiled for this GPU; a restart of the container finds it again.
- name: driver-cache
  emptyDir:
    sizeLimit: 1Gi
{{- end }}
{{- with .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.auth.secretName }}
- name: auth
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
