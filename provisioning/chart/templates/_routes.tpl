{{/* The paths of one group as a JSON list of {type, path}, type one of exact, prefix, regex. Takes (list $ group way).
Way `plain`: what a plain Ingress can say, for generic workers only under the versions that clients of today use.
Way `regex`: everything, as few regular expressions, whole from ^ to $, because some routers match a part and some the
whole. (An Ingress takes no path that does not start with /, so there the ^ goes.) */}}
{{- define "routes.paths" -}}
{{- $root := index . 0 -}}
{{- $group := index . 1 -}}
{{- $way := index . 2 -}}
{{- $paths := list -}}
{{- range index ($root.Files.Get "files/routes.yaml" | fromYaml) $group.routes -}}
{{- if eq $way "regex" -}}
  {{- $start := regexQuoteMeta .base -}}
  {{- if .versions -}}{{- $start = printf "%s/(%s)" $start (join "|" .versions) -}}{{- end -}}
  {{- with .exact -}}{{- $paths = append $paths (dict "type" "regex" "path" (printf "^%s/(%s)$" $start (join "|" . | replace "." "\\."))) -}}{{- end -}}
  {{- with .prefix -}}{{- $paths = append $paths (dict "type" "regex" "path" (printf "^%s/(%s)(/.*)?$" $start (join "|" .))) -}}{{- end -}}
  {{- range .pattern -}}{{- $paths = append $paths (dict "type" "regex" "path" (printf "^%s/%s$" $start .)) -}}{{- end -}}
{{- else -}}
  {{- $entry := . -}}
  {{- range $version := .versions | default (list "") -}}
  {{- if or (ne $group.name "generic") (ne $version "r0") -}}
    {{- $start := ternary $entry.base (printf "%s/%s" $entry.base $version) (eq $version "") -}}
    {{- range $entry.exact -}}{{- $paths = append $paths (dict "type" "exact" "path" (printf "%s/%s" $start .)) -}}{{- end -}}
    {{- range $entry.prefix -}}{{- $paths = append $paths (dict "type" "prefix" "path" (printf "%s/%s" $start .)) -}}{{- end -}}
  {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $paths -}}
{{- end -}}
