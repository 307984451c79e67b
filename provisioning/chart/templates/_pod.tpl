{{/* The containers and volumes of one Synapse process. Takes (list $ group). */}}
{{- define "synapse.pod" -}}
{{- $root := index . 0 -}}
{{- $group := index . 1 -}}
{{- $spec := $root.Values.spec -}}
{{- $shares := $group.shares | default 1 -}}
{{- $serves := eq $root.hearth.mediaOn $group.name -}}
{{- $cache := and $serves $spec.media.s3 -}}
terminationGracePeriodSeconds: 60
securityContext: {{- include "hearth.podSecurity" 10991 | nindent 2 }}
containers:
  - name: synapse
    image: {{ $spec.images.synapse }}
    imagePullPolicy: IfNotPresent
    command: [python, /etc/synapse/start.py, /etc/synapse, /etc/synapse-secrets, {{ $group.name }}]
    workingDir: /tmp
    # What it said last, for the operator and the server's page: without this an exit has no words with it.
    terminationMessagePolicy: FallbackToLogsOnError
    env:
      - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
      - {name: TMPDIR, value: /tmp}
      - {name: HOME, value: /tmp}
      - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
      {{- with $spec.secret.signingKeyId }}
      - {name: SIGNING_KEY_ID, value: {{ . | quote }}}
      {{- end }}
      {{- if $spec.media.s3 }}
      - {name: AWS_SHARED_CREDENTIALS_FILE, value: /etc/synapse-secrets/s3-credentials}
      {{- end }}
    ports:
      - {name: http, containerPort: 8008}
      {{- if and $spec.routing.loadBalancer (eq $group.name "main") }}
      - {name: public, containerPort: 8448}
      {{- end }}
      - {name: metrics, containerPort: 9090}
      {{- if and $root.hearth.workers (eq $group.kind "StatefulSet") }}
      - {name: replication, containerPort: 9093}
      {{- end }}
    # A first start makes the schema, a later one may change it. Both are one transaction, which begins again from nothing
    # when it is cut off: so a day, and the operator says that it takes long.
    startupProbe: {httpGet: {path: /health, port: http}, periodSeconds: 2, failureThreshold: 43200}
    {{- /* A busy Synapse answers late. Where another one serves meanwhile it is left out soon; a single one never for that. */}}
    {{- $patience := ternary 2 24 (gt (int $group.count) 1) }}
    {{- if has "health" ($group.resources | default list) }}
    readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 5, failureThreshold: {{ $patience }}, timeoutSeconds: 5}
    livenessProbe: {tcpSocket: {port: http}, periodSeconds: 20, failureThreshold: 6, timeoutSeconds: 10}
    {{- else }}
    readinessProbe: {httpGet: {path: /_matrix/client/versions, port: http}, periodSeconds: 5, failureThreshold: {{ $patience }}, timeoutSeconds: 5}
    livenessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 20, failureThreshold: 6, timeoutSeconds: 10}
    {{- end }}
    {{- if $group.routes }}
    # Routers stop sending before the process stops listening.
    lifecycle: {preStop: {sleep: {seconds: 5}}}
    {{- end }}
    resources:
      requests: {cpu: {{ min 2000 (mul $root.hearth.shareCPU $shares) }}m, memory: {{ mul $root.hearth.shareMemory $shares }}Mi, ephemeral-storage: 256Mi}
      # One Synapse process runs Python on one core; the rest is for its libraries' threads.
      limits: {cpu: "2", memory: {{ mul $root.hearth.shareMemory $shares }}Mi, ephemeral-storage: {{ include "synapse.scratch" (list $root $cache) }}}
    securityContext: {{ include "hearth.containerSecurity" 10991 }}
    volumeMounts:
      - {name: configuration, mountPath: /etc/synapse, readOnly: true}
      - {name: secrets, mountPath: /etc/synapse-secrets, readOnly: true}
      {{- if $spec.database.cluster }}
      - {name: database-authority, mountPath: /etc/synapse-database, readOnly: true}
      {{- end }}
      - {name: tmp, mountPath: /tmp}
      - {name: media, mountPath: /var/lib/synapse/media}
  {{- if $cache }}
  - name: media-cache
    image: {{ $spec.images.synapse }}
    imagePullPolicy: IfNotPresent
    command: [python, /etc/synapse/cache.py, /var/lib/synapse/media, {{ mul (int (trimSuffix "Gi" $spec.media.s3.cacheSize)) 1073741824 | quote }}]
    resources:
      requests: {cpu: 5m, memory: 32Mi, ephemeral-storage: 16Mi}
      limits: {cpu: 500m, memory: 64Mi, ephemeral-storage: 64Mi}
    securityContext: {{ include "hearth.containerSecurity" 10991 }}
    volumeMounts:
      - {name: configuration, mountPath: /etc/synapse, readOnly: true}
      - {name: media, mountPath: /var/lib/synapse/media}
  {{- end }}
volumes:
  - name: configuration
    configMap: {name: synapse}
  - name: secrets
    secret: {secretName: {{ $spec.secret.name | quote }}, defaultMode: 0440}
  {{- if $spec.database.cluster }}
  - name: database-authority
    secret: {secretName: postgres-ca, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
  {{- end }}
  - name: tmp
    emptyDir: {sizeLimit: 2Gi}
  - name: media
    {{- if not $serves }}
    emptyDir: {sizeLimit: 64Mi}
    {{- else if $spec.media.s3 }}
    emptyDir: {sizeLimit: {{ $spec.media.s3.cacheSize }}}
    {{- else }}
    persistentVolumeClaim: {claimName: media}
    {{- end }}
{{- end -}}

{{/* The most a pod may write on its node: an upload on its way, logs, and the copies of media. Takes (list $ caches). */}}
{{- define "synapse.scratch" -}}
{{- $room := 3 -}}
{{- if index . 1 -}}{{- $room = add $room (int (trimSuffix "Gi" (index . 0).Values.spec.media.s3.cacheSize)) -}}{{- end -}}
{{ $room }}Gi
{{- end -}}
