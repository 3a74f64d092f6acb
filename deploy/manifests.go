package deploy

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// documents yields those of manifests; some may be empty.
func documents(manifests string) iter.Seq[string] { return strings.SplitSeq("\n"+manifests, "\n---") }

// AgentNodes returns which nodes get an agent by the chart's manifests.
func AgentNodes(manifests string) (labels.Selector, error) {
	for text := range documents(manifests) {
		var is metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(text), &is); err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if is.Kind != "DaemonSet" {
			continue
		}
		var set appsv1.DaemonSet
		if err := yaml.Unmarshal([]byte(text), &set); err != nil {
			return nil, fmt.Errorf("read DaemonSet: %w", err)
		}
		return labels.SelectorFromSet(set.Spec.Template.Spec.NodeSelector), nil
	}
	return nil, errors.New("read manifests: no DaemonSet")
}
