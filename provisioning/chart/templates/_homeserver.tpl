{{/* homeserver.yaml, without a secret: what all processes read. Takes {root, groups (without the main one), host}.
https://element-hq.github.io/synapse/latest/usage/configuration/config_documentation.html */}}
{{- define "synapse.homeserver" -}}
{{- $spec := .root.Values.spec -}}
{{- $namespace := .root.Values.server.namespace -}}
{{- $secrets := "/etc/synapse-secrets" -}}
server_name: {{ $spec.serverName | quote }}
public_baseurl: {{ printf "https://%s/" $spec.publicHost | quote }}
# The answer to other servers names port 443 of the server name itself; for another host synapse-front answers.
serve_server_wellknown: {{ eq .host $spec.publicHost }}
report_stats: false
enable_metrics: true
log_config: /etc/synapse/log.yaml
signing_key_path: {{ $secrets }}/signing.key
macaroon_secret_key_path: {{ $secrets }}/macaroon
registration_shared_secret_path: {{ $secrets }}/registration
form_secret_path: {{ $secrets }}/form
enable_registration: false
# No keys from a notary: each server's keys are asked of that server itself.
trusted_key_servers: []
suppress_key_server_warning: true
{{- if not $spec.federation.enabled }}
# Nobody has proved that the name is theirs: it may not speak under that name to anybody.
federation_domain_whitelist: []
{{- end }}
listeners:
  - type: http
    port: 8008
    x_forwarded: true
    resources: [{names: [client, federation], compress: false}]
  {{- if $spec.routing.loadBalancer }}
  # A balancer knows no paths, so what the world reaches through it is a listener of its own without administration.
  - type: http
    port: 8448
    x_forwarded: true
    resources: [{names: [client, federation], compress: false}]
    additional_resources: {/_synapse/admin: {module: closed.Closed}}
  {{- end }}
  - {type: metrics, port: 9090}
  {{- if .groups }}
  - type: http
    port: 9093
    resources: [{names: [replication], compress: false}]
  {{- end }}
database:
  name: psycopg2
  args:
    {{- with $spec.database.cluster }}
    host: postgres-rw
    port: 5432
    user: synapse
    dbname: synapse
    sslmode: verify-full
    sslrootcert: /etc/synapse-database/ca.crt
    {{- end }}
    {{- with $spec.database.managed }}
    host: {{ .host | quote }}
    port: {{ .port }}
    user: {{ .user | quote }}
    dbname: {{ .name | quote }}
    sslmode: {{ .tls }}
    {{- end }}
    connect_timeout: 10
    keepalives_idle: 10
    keepalives_interval: 10
    keepalives_count: 3
    cp_min: 2
    cp_max: 10
{{- if .groups }}
redis:
  enabled: true
  {{- with $spec.redis.own }}
  host: redis
  port: 6379
  {{- end }}
  {{- with $spec.redis.managed }}
  host: {{ .host | quote }}
  port: {{ .port }}
  dbid: {{ .database }}
  use_tls: {{ .tls }}
  {{- end }}
  password_path: {{ $secrets }}/redis
worker_replication_secret_path: {{ $secrets }}/replication
instance_map:
  main: {host: {{ printf "synapse-main-0.synapse.%s.svc" $namespace }}, port: 9093}
  {{- range $group := .groups }}
  {{- if eq .kind "StatefulSet" }}
  {{- range until .count }}
  synapse-{{ $group.name }}-{{ . }}: {host: {{ printf "synapse-%s-%d.synapse.%s.svc" $group.name . $namespace }}, port: 9093}
  {{- end }}
  {{- end }}
  {{- end }}
{{- $writers := dict }}
{{- range .groups }}{{- if .stream }}{{- $_ := set $writers .stream (include "synapse.instances" . | fromJsonArray) }}{{- end }}{{- end }}
{{- with $writers }}
stream_writers: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range .groups }}
{{- if eq .name "federation-sender" }}
federation_sender_instances: {{ include "synapse.instances" . }}
{{- else if eq .name "media" }}
enable_media_repo: false
media_instance_running_background_jobs: synapse-media-0
{{- end }}
{{- end }}
{{- end }}
media_store_path: /var/lib/synapse/media
{{- with $spec.media.s3 }}
media_storage_providers:
  - module: s3_storage_provider.S3StorageProviderBackend
    # An upload is answered when it lies in S3: the copy on the node may go at any time.
    store_local: true
    store_remote: true
    store_synchronous: true
    config:
      bucket: {{ .bucket | quote }}
      endpoint_url: {{ .endpoint | quote }}
      prefix: {{ .prefix | quote }}
      {{- with .region }}
      region_name: {{ . | quote }}
      {{- end }}
{{- end }}
max_upload_size: {{ int64 $spec.limits.maxUploadBytes }}
url_preview_enabled: false
# Counts and limits. Hearth's service account is of type `support`, which the limit never blocks.
limit_usage_by_mau: true
max_mau_value: {{ int64 $spec.limits.maxUsers }}
mau_trial_days: 0
rc_login:
  # Many people may share one address; guessing stays slow, by Synapse's own defaults.
  address: {per_second: 1, burst_count: 50}
  account: {per_second: 1, burst_count: 30}
  failed_attempts: {per_second: 0.17, burst_count: 3}
{{- end -}}

{{- define "synapse.instances" -}}
{{- $group := . -}}
{{- $names := list -}}
{{- range until .count -}}{{- $names = append $names (printf "synapse-%s-%d" $group.name .) -}}{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* A worker's own file. */}}
{{- define "synapse.worker" -}}
worker_app: synapse.app.generic_worker
worker_log_config: /etc/synapse/log.yaml
enable_media_repo: {{ eq .name "media" }}
worker_listeners:
  - type: http
    port: 8008
    x_forwarded: true
    resources: [{names: {{ toJson .resources }}, compress: false}]
  {{- if eq .kind "StatefulSet" }}
  - type: http
    port: 9093
    resources: [{names: [replication], compress: false}]
  {{- end }}
  - {type: metrics, port: 9090}
{{- end -}}
