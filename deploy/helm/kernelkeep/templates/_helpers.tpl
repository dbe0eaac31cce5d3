{{- define "kernelkeep.labels" -}}
app.kubernetes.io/name: {{ .Release.Name }}
{{- end }}

{{- /* The address of this pod with a port. */}}
{{- define "kernelkeep.address" -}}
{{- if .root.Values.ipv6 }}[$(POD_IP)]{{ else }}$(POD_IP){{ end }}:{{ .port }}
{{- end }}

{{- /* Any address of the pod's. */}}
{{- define "kernelkeep.any" -}}
{{- if .Values.ipv6 }}[::]{{ else }}0.0.0.0{{ end }}
{{- end }}

{{- /* The cluster's names, in a policy. */}}
{{- define "kernelkeep.names" }}
    - to:
        - namespaceSelector:
            matchLabels: {kubernetes.io/metadata.name: kube-system}
      ports:
        - {port: 53, protocol: UDP}
        - {port: 53, protocol: TCP}
{{- end }}
