{{/* Alerts of one server. One that serves nobody is expected to be silent. */}}
{{- define "monitoring.rules" -}}
{{- $here := printf "namespace=%q" .Values.server.namespace -}}
{{- $labels := printf "{hearth_server: %s, severity: " .Values.server.namespace -}}
{{- if not .hearth.idle }}
- alert: MatrixServerDown
  expr: absent(up{ {{- $here }},job="synapse-main"} == 1)
  for: 2m
  labels: {{ $labels }}critical}
  annotations: {summary: The main process of {{ .Values.spec.serverName }} does not answer, description: Nobody can sign in or send. Data is not in danger.}
- alert: MatrixProcessDown
  expr: up{ {{- $here }},job=~"synapse-.+"} == 0
  for: 5m
  labels: {{ $labels }}warning}
  annotations: {summary: "{{ "{{ $labels.instance }}" }} of {{ .Values.spec.serverName }} does not answer", description: What this process serves is slow or stopped.}
- alert: MatrixProcessRestarts
  expr: increase(kube_pod_container_status_restarts_total{ {{- $here }}}[15m]) > 3
  labels: {{ $labels }}warning}
  annotations: {summary: "{{ "{{ $labels.pod }}" }} of {{ .Values.spec.serverName }} keeps restarting", description: Its last log lines say why.}
- alert: MatrixEventsLate
  expr: histogram_quantile(0.9, sum by (le) (rate(synapse_http_server_response_time_seconds_bucket{ {{- $here }},servlet="RoomSendEventRestServlet"}[5m]))) > 2
  for: 10m
  labels: {{ $labels }}warning}
  annotations: {summary: Sending takes more than 2 s on {{ .Values.spec.serverName }}, description: One in ten messages is late. Look at the database and at the event persisters.}
- alert: MatrixReplicationLate
  expr: max(synapse_replication_tcp_resource_total_connections{ {{- $here }}}) by (namespace) == 0
  for: 5m
  labels: {{ $labels }}warning}
  annotations: {summary: Processes of {{ .Values.spec.serverName }} have lost Redis, description: Messages may hang until it is back.}
{{- if .Values.spec.federation.enabled }}
- alert: MatrixFederationLate
  expr: max(synapse_event_processing_lag{ {{- $here }},name="federation_sender"}) / 1000 > 300
  for: 10m
  labels: {{ $labels }}warning}
  annotations: {summary: Other servers get messages of {{ .Values.spec.serverName }} more than 5 minutes late, description: Look at the federation senders.}
{{- end }}
{{- if .Values.spec.workers.generic }}
- alert: MatrixWorkersAtMaximum
  expr: kube_horizontalpodautoscaler_status_current_replicas{ {{- $here }}} >= kube_horizontalpodautoscaler_spec_max_replicas{ {{- $here }}}
  for: 1h
  labels: {{ $labels }}info}
  annotations: {summary: "{{ .Values.spec.serverName }} has used all its workers for an hour", description: A larger plan would make it faster.}
{{- end }}
{{- with .Values.spec.database.cluster }}
- alert: MatrixDatabaseDown
  expr: absent(cnpg_collector_up{ {{- $here }},cluster="postgres"} == 1)
  for: 2m
  labels: {{ $labels }}critical}
  annotations: {summary: The database of {{ $.Values.spec.serverName }} does not answer, description: Nothing can be sent or read.}
{{- if gt (int .instances) 1 }}
- alert: MatrixDatabaseReplicaLate
  expr: max(cnpg_pg_replication_lag{ {{- $here }}}) > 30
  for: 5m
  labels: {{ $labels }}warning}
  annotations: {summary: A replica of the database of {{ $.Values.spec.serverName }} is more than 30 s behind, description: A failover now would take longer or lose what is missing.}
{{- end }}
{{- end }}
{{- if .Values.spec.backup.enabled }}
- alert: MatrixBackupsStopped
  expr: kube_deployment_status_replicas_ready{ {{- $here }},deployment="backup-agent"} == 0
  for: 1h
  labels: {{ $labels }}critical}
  annotations: {summary: "{{ .Values.spec.serverName }} is not backed up", description: The condition BackupReady of its MatrixServer says why. What is stored stays.}
{{- end }}
- alert: MatrixVolumeFull
  expr: kubelet_volume_stats_available_bytes{ {{- $here }}} / kubelet_volume_stats_capacity_bytes{ {{- $here }}} < 0.1
  for: 5m
  labels: {{ $labels }}critical}
  annotations: {summary: "Volume {{ "{{ $labels.persistentvolumeclaim }}" }} of {{ .Values.spec.serverName }} is nearly full", description: When it is full the server stops. Raise its size.}
{{- end }}
{{- if and .hearth.routed .Values.spec.routing.certificate }}
- alert: MatrixCertificateExpires
  expr: certmanager_certificate_expiration_timestamp_seconds{ {{- $here }},name="synapse"} - time() < 7 * 86400
  for: 1h
  labels: {{ $labels }}critical}
  annotations: {summary: The certificate of {{ .Values.spec.publicHost }} ends within a week, description: It should have been renewed. Look at the Certificate and its issuer.}
{{- end }}
{{- end -}}
