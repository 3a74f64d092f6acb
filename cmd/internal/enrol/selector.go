package enrol

import (
	"fmt"
	"slices"
	"strings"
)

// Selector takes a pod when both its parts match; an empty part matches everything.
type Selector struct {
	Pod, Namespace LabelSelector
}

// DefaultSelectors are the reference's: a pod labelled ambient, and a pod of a namespace labelled ambient that is not
// itself labelled none. So the pod's own label wins in both directions.
func DefaultSelectors() []Selector {
	ambient := Requirement{Key: LabelMode, Operator: In, Values: []string{ModeAmbient}}
	return []Selector{
		{Pod: LabelSelector{ambient}},
		{Pod: LabelSelector{{Key: LabelMode, Operator: NotIn, Values: []string{ModeNone}}}, Namespace: LabelSelector{ambient}},
	}
}

// String says what the selector wants.
func (s Selector) String() string {
	var parts []string
	if len(s.Pod) > 0 {
		parts = append(parts, "pod has "+s.Pod.String())
	}
	if len(s.Namespace) > 0 {
		parts = append(parts, "namespace has "+s.Namespace.String())
	}
	if len(parts) == 0 {
		return "all pods are selected"
	}
	return strings.Join(parts, ", ")
}

// LabelSelector matches labels that meet all its requirements.
type LabelSelector []Requirement

// Matches reports whether the labels meet all requirements.
func (s LabelSelector) Matches(labels map[string]string) bool {
	return !slices.ContainsFunc(s, func(r Requirement) bool { return !r.matches(labels) })
}

// String returns the selector in the notation of kubectl.
func (s LabelSelector) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// Operator is how a requirement compares.
type Operator string

// The operators of Kubernetes' label selectors. NotIn is met by an absent label too.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is one condition on one label. One with an unknown operator is never met.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

func (r Requirement) matches(labels map[string]string) bool {
	value, present := labels[r.Key]
	switch r.Operator {
	case In:
		return present && slices.Contains(r.Values, value)
	case NotIn:
		return !present || !slices.Contains(r.Values, value)
	case Exists:
		return present
	case DoesNotExist:
		return !present
	}
	return false
}

// String returns the requirement in the notation of kubectl.
func (r Requirement) String() string {
	switch r.Operator {
	case In:
		if len(r.Values) == 1 {
			return r.Key + "=" + r.Values[0]
		}
		return fmt.Sprintf("%s in (%s)", r.Key, strings.Join(r.Values, ","))
	case NotIn:
		if len(r.Values) == 1 {
			return r.Key + "!=" + r.Values[0]
		}
		return fmt.Sprintf("%s notin (%s)", r.Key, strings.Join(r.Values, ","))
	case Exists:
		return r.Key
	case DoesNotExist:
		return "!" + r.Key
	}
	return fmt.Sprintf("%s %s?", r.Key, r.Operator)
}

// ParseSelector reads a selector of the form "POD;NAMESPACE" or "POD", each part in the notation of kubectl: conditions
// "key=value", "key!=value", "key" and "!key" separated by commas. Sets of values are not taken; write two selectors.
func ParseSelector(text string) (Selector, error) {
	pod, namespace, _ := strings.Cut(text, ";")
	p, err := parseLabels(pod)
	if err != nil {
		return Selector{}, fmt.Errorf("parse pod selector: %w", err)
	}
	n, err := parseLabels(namespace)
	if err != nil {
		return Selector{}, fmt.Errorf("parse namespace selector: %w", err)
	}
	return Selector{Pod: p, Namespace: n}, nil
}

func parseLabels(text string) (LabelSelector, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var out LabelSelector
	for part := range strings.SplitSeq(text, ",") {
		r, err := parseRequirement(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRequirement(text string) (Requirement, error) {
	r := Requirement{Key: text, Operator: Exists}
	if key, value, ok := strings.Cut(text, "!="); ok {
		r = Requirement{Key: key, Operator: NotIn, Values: []string{strings.TrimSpace(value)}}
	} else if key, value, ok := strings.Cut(text, "="); ok {
		value = strings.TrimPrefix(value, "=") // kubectl takes == too
		r = Requirement{Key: key, Operator: In, Values: []string{strings.TrimSpace(value)}}
	} else if key, ok := strings.CutPrefix(text, "!"); ok {
		r = Requirement{Key: key, Operator: DoesNotExist}
	}
	r.Key = strings.TrimSpace(r.Key)
	for _, part := range append([]string{r.Key}, r.Values...) {
		if strings.ContainsAny(part, " \t!=(),;") {
			return Requirement{}, fmt.Errorf("%.80q is not a condition on a label", text)
		}
	}
	if r.Key == "" {
		return Requirement{}, fmt.Errorf("%.80q names no label", text)
	}
	return r, nil
}
