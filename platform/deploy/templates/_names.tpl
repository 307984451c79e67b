{{- define "hearth.labels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: hearth
{{- end }}
