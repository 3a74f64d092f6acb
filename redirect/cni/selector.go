package cni

import (
	"fmt"
	"slices"
)

// Selector takes a pod when its labels and those of its namespace meet all conditions.
type Selector struct {
	Pod       []Condition `json:"pod,omitempty"`
	Namespace []Condition `json:"namespace,omitempty"`
}

// Condition is one on one label, as in Kubernetes' label selectors.
type Condition struct {
	Label    string   `json:"label"`
	Operator string   `json:"operator"` // In, NotIn, Exists or DoesNotExist
	Values   []string `json:"values,omitempty"`
}

func (c Condition) met(labels map[string]string) bool {
	value, present := labels[c.Label]
	switch c.Operator {
	case "In":
		return present && slices.Contains(c.Values, value)
	case "NotIn":
		return !present || !slices.Contains(c.Values, value)
	case "Exists":
		return present
	}
	return !present // DoesNotExist, as validate has seen to
}

func (c Condition) validate() error {
	if !slices.Contains([]string{"In", "NotIn", "Exists", "DoesNotExist"}, c.Operator) {
		return fmt.Errorf("condition on label %.80q: operator %.40q is unknown", c.Label, c.Operator)
	}
	return nil
}

func allMet(conditions []Condition, labels map[string]string) bool {
	return !slices.ContainsFunc(conditions, func(c Condition) bool { return !c.met(labels) })
}

// takes reports whether any of the selectors takes the pod.
func takes(selectors []Selector, pod, namespace object) bool {
	return slices.ContainsFunc(selectors, func(s Selector) bool {
		return allMet(s.Pod, pod.Metadata.Labels) && allMet(s.Namespace, namespace.Metadata.Labels)
	})
}
