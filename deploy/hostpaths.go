package deploy

import (
	"errors"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// AgentNodes returns which nodes get an agent by the chart's manifests.
func AgentNodes(manifests string) (labels.Selector, error) {
	for text := range strings.SplitSeq("\n"+manifests, "\n---") {
		var set appsv1.DaemonSet
		if err := yaml.Unmarshal([]byte(text), &set.TypeMeta); err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if set.Kind != "DaemonSet" {
			continue
		}
		if err := yaml.Unmarshal([]byte(text), &set); err != nil {
			return nil, fmt.Errorf("read DaemonSet: %w", err)
		}
		return labels.SelectorFromSet(set.Spec.Template.Spec.NodeSelector), nil
	}
	return nil, errors.New("read manifests: no DaemonSet")
}

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
