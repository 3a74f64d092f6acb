package deploy

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// HostPaths returns a replacer of the paths that an agent's container has of its node's files by those of the node, which
// are what its user knows.
func HostPaths(spec *corev1.PodSpec) *strings.Replacer {
	on := map[string]string{}
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			on[v.Name] = v.HostPath.Path
		}
	}
	var pairs []string
	for _, c := range spec.Containers {
		for _, m := range c.VolumeMounts {
			if path := on[m.Name]; path != "" {
				pairs = append(pairs, m.MountPath, path)
			}
		}
	}
	return strings.NewReplacer(pairs...)
}
