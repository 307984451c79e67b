{{/* Everything that more than one template needs is worked out once, as $.hearth:
  groups    a list of {name, kind, replicas, max, streams, http, replication, media, routes}: the main process first
  workers   whether there are any
  share     memory of one share in Mi, and milli CPU; the main process has two where there are workers
  mediaOn   the group that serves media
  host      the server name without a port
  idle      whether nobody is served: suspended, closed, or being brought back
  stopped   whether no process of Synapse may run
  routed    whether anybody outside may reach it
  front     whether synapse-front is needed, and why: wellKnown, suspended
  database  whether there is a database cluster to be made: not before there is one to copy
*/}}
{{- define "hearth.setup" -}}
{{- if not (hasKey $ "hearth") -}}
{{- $spec := .Values.spec -}}
{{- $workers := $spec.workers -}}
{{- $suspended := hasKey $spec "suspended" -}}
{{- $idle := or $suspended ($spec.closed | default false) (hasKey $spec "recovery") -}}
{{- $routed := not $spec.routing.unrouted -}}
{{- $restores := false -}}
{{- with $spec.recovery -}}{{- $restores = not .settle -}}{{- end -}}
{{- $progress := .Values.server.recovery | default (dict "copies" false "rests" false) -}}
{{- $groups := list -}}
{{- with $workers.generic -}}
{{- $groups = append $groups (dict "name" "generic" "kind" "Deployment" "count" (int .min) "max" (int .max) "resources" (list "client" "federation") "routes" "generic") -}}
{{- end -}}
{{- with int $workers.eventPersisters -}}
{{- $groups = append $groups (dict "name" "event-persister" "kind" "StatefulSet" "count" . "max" . "stream" "events" "resources" (list "health")) -}}
{{- end -}}
{{- with int $workers.federationSenders -}}
{{- $groups = append $groups (dict "name" "federation-sender" "kind" "StatefulSet" "count" . "max" . "resources" (list "health")) -}}
{{- end -}}
{{- with int $workers.mediaRepositories -}}
{{- $groups = append $groups (dict "name" "media" "kind" "StatefulSet" "count" . "max" . "resources" (list "media" "client" "federation") "routes" "media") -}}
{{- end -}}
{{- range $key, $names := dict "typing" "typing:typing" "toDevice" "to-device:to_device" "accountData" "account-data:account_data" "receipts" "receipts:receipts" "presence" "presence:presence" "pushRules" "push-rules:push_rules" -}}
{{- if index $workers.streamWriters $key -}}
{{- $name := splitList ":" $names -}}
{{- $groups = append $groups (dict "name" (first $name) "kind" "StatefulSet" "count" 1 "max" 1 "stream" (last $name) "resources" (list "client") "routes" (first $name)) -}}
{{- end -}}
{{- end -}}
{{- $processes := 1 -}}
{{- if $groups -}}{{- $processes = 2 -}}{{- end -}}
{{- range $groups -}}{{- $processes = add $processes .max -}}{{- end -}}
{{- $memory := int (regexFind "^[0-9]+" $spec.size.memory) -}}
{{- if hasSuffix "Gi" $spec.size.memory -}}{{- $memory = mul $memory 1024 -}}{{- end -}}
{{- $share := div $memory $processes -}}
{{- if lt $share 384 -}}
{{- fail (printf "%d processes do not fit into %s: each needs 384Mi and the main process twice that. Nothing was made. Take fewer workers or a larger size." $processes $spec.size.memory) -}}
{{- end -}}
{{- $host := first (splitList ":" $spec.serverName) -}}
{{- $wellKnown := and $spec.routing.wellKnown (ne $host $spec.publicHost) (or $spec.routing.ingress $spec.routing.gateway) $routed | not | not -}}
{{- $main := dict "name" "main" "kind" "StatefulSet" "count" 1 "max" 1 "shares" (ternary 2 1 (gt (len $groups) 0)) -}}
{{- $_ := set $ "hearth" (dict
  "groups" (prepend $groups $main)
  "workers" (gt (len $groups) 0)
  "shareMemory" $share
  "shareCPU" (div (mul (int $spec.size.cpu) 1000) $processes)
  "mediaOn" (ternary "media" "main" (gt (int $workers.mediaRepositories) 0))
  "suspended" $suspended
  "idle" $idle
  "stopped" (or $idle (.Values.server.stopped | default false))
  "routed" $routed
  "restores" $restores
  "copied" (or $restores (.Values.server.copied | default false))
  "rests" $progress.rests
  "database" (or (not $restores) $progress.copies)
  "host" $host
  "wellKnown" $wellKnown
  "front" (and $routed (or $wellKnown $suspended))
  "configuration" (include "synapse.homeserver" (dict "root" $ "groups" $groups "host" $host) | trim)) -}}
{{- end -}}
{{- end -}}

{{/* Names and labels. `hearth.meta` takes (list $ name component [labels]). */}}
{{- define "hearth.meta" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ $root.Values.server.namespace }}
labels:
  {{- include "hearth.selector" (list $root (index . 2)) | nindent 2 }}
  app.kubernetes.io/managed-by: hearth
  app.kubernetes.io/part-of: matrix-server
  hearth.host/server: {{ $root.Values.server.namespace }}
  hearth.host/organisation: {{ $root.Values.server.organisation | quote }}
{{- with $root.Values.server.uid }}
ownerReferences:
  - apiVersion: hearth.host/v1
    kind: MatrixServer
    name: {{ $root.Values.server.name }}
    uid: {{ . }}
    controller: true
{{- end }}
{{- end -}}

{{- define "hearth.selector" -}}
app.kubernetes.io/instance: {{ (index . 0).Values.server.name }}
app.kubernetes.io/name: {{ index . 1 }}
{{- end -}}

{{/* What a change of must restart every process of Synapse. */}}
{{- define "hearth.revisions" -}}
hearth.host/configuration: {{ .hearth.configuration | sha256sum | trunc 32 | quote }}
hearth.host/secret-revision: {{ .Values.spec.secret.revision | quote }}
hearth.host/restarts: {{ int64 .Values.spec.restarts | quote }}
{{- end -}}

{{- define "hearth.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "hearth.containerSecurity" -}}
{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, runAsNonRoot: true, runAsUser: {{ . }}, runAsGroup: {{ . }}, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
{{- end -}}

{{/* Where pods run: the region's nodes and priority, its pull secret, spread over nodes and zones. Takes (list $ name). */}}
{{- define "hearth.placement" -}}
{{- $root := index . 0 -}}
{{- $spec := $root.Values.spec -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: synapse
{{- with $spec.priorityClass }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $spec.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $spec.images.pullSecret }}
imagePullSecrets: [{name: {{ . }}}]
{{- end }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "hearth.selector" (list $root (index $ 1)) | nindent 8 }}
  {{- end }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 50
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "hearth.selector" (list $root (index . 1)) | nindent 14 }}
{{- end -}}
