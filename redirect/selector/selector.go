// Package selector says by labels which pods are to be in the mesh: to the agent, and to the CNI plugin while the agent is
// away. What else keeps a pod out is left to them.
//
// A Selector is plain data, also as JSON; nothing changes it.
package selector

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The label by which Istio's ambient mode decides, on a pod or a namespace, and its values.
const (
	LabelMode   = "istio.io/dataplane-mode"
	ModeAmbient = "ambient"
	ModeNone    = "none"
)

// Selector takes a pod when both its parts match; an empty part matches everything.
type Selector struct {
	Pod       Labels `json:"pod,omitempty"`
	Namespace Labels `json:"namespace,omitempty"`
}

// Default returns the selectors of Istio's ambient mode: a pod labelled ambient, and a pod of a namespace labelled ambient
// that is not itself labelled none. So the pod's own label wins in both directions.
func Default() []Selector {
	ambient := Requirement{Key: LabelMode, Operator: In, Values: []string{ModeAmbient}}
	return []Selector{
		{Pod: Labels{ambient}},
		{Pod: Labels{{Key: LabelMode, Operator: NotIn, Values: []string{ModeNone}}}, Namespace: Labels{ambient}},
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

// Matching returns the first of the selectors that takes a pod with these labels in a namespace with those, or nil. The
// selectors nil stand for the default ones; an empty list takes nothing.
func Matching(selectors []Selector, pod, namespace map[string]string) *Selector {
	if selectors == nil {
		selectors = Default()
	}
	for i := range selectors {
		if s := &selectors[i]; s.Pod.match(pod) && s.Namespace.match(namespace) {
			return s
		}
	}
	return nil
}

// Validate refuses what only a selector that did not come from Parse can have.
func (s Selector) Validate() error {
	var errs []error
	for _, r := range slices.Concat(s.Pod, s.Namespace) {
		switch r.Operator {
		case In, NotIn, Exists, DoesNotExist:
		default:
			errs = append(errs, fmt.Errorf("condition on label %.80q: operator %.40q is unknown", r.Key, r.Operator))
		}
	}
	return errors.Join(errs...)
}

// Labels matches labels that meet all its requirements.
type Labels []Requirement

func (s Labels) match(labels map[string]string) bool {
	return !slices.ContainsFunc(s, func(r Requirement) bool { return !r.matches(labels) })
}

// String returns the selector in the notation of kubectl.
func (s Labels) String() string {
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
	Key      string   `json:"label"`
	Operator Operator `json:"operator"`
	Values   []string `json:"values,omitempty"`
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

// Parse reads selectors, separated by bars, of the form "POD;NAMESPACE" or "POD", each part in the notation of kubectl:
// conditions "key=value", "key!=value", "key" and "!key" separated by commas. Sets of values are not taken; write two
// selectors. An empty text is none.
func Parse(text string) ([]Selector, error) {
	if text == "" {
		return nil, nil
	}
	var out []Selector
	for part := range strings.SplitSeq(text, "|") {
		s, err := parse(part)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func parse(text string) (Selector, error) {
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

func parseLabels(text string) (Labels, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var out Labels
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
