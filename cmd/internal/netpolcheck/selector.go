package netpolcheck

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// nameLabel is on every namespace, with its name; the API server sees to that.
const nameLabel = "kubernetes.io/metadata.name"

// requirements of a selector, one a condition; nil has none.
func requirements(s *metav1.LabelSelector) []metav1.LabelSelectorRequirement {
	if s == nil {
		return nil
	}
	out := slices.Clone(s.MatchExpressions)
	for key, value := range s.MatchLabels {
		out = append(out, metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{value}})
	}
	return out
}

// matches reports whether labels meet a selector; nil and one that cannot be read match nothing.
func matches(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(set))
}

// covers reports whether everything that meets narrow meets wide too, as far as their words show; nil has no conditions.
func covers(wide, narrow *metav1.LabelSelector) bool {
	have := requirements(narrow)
	return !slices.ContainsFunc(requirements(wide), func(w metav1.LabelSelectorRequirement) bool {
		return !slices.ContainsFunc(have, func(n metav1.LabelSelectorRequirement) bool { return implies(n, w) })
	})
}

// implies reports whether a label that meets n meets w.
func implies(n, w metav1.LabelSelectorRequirement) bool {
	if n.Key != w.Key {
		return false
	}
	switch w.Operator {
	case metav1.LabelSelectorOpIn:
		return n.Operator == metav1.LabelSelectorOpIn && subset(n.Values, w.Values)
	case metav1.LabelSelectorOpNotIn:
		return n.Operator == metav1.LabelSelectorOpNotIn && subset(w.Values, n.Values) ||
			n.Operator == metav1.LabelSelectorOpIn && !common(n.Values, w.Values) || n.Operator == metav1.LabelSelectorOpDoesNotExist
	case metav1.LabelSelectorOpExists:
		return n.Operator == metav1.LabelSelectorOpExists || n.Operator == metav1.LabelSelectorOpIn
	case metav1.LabelSelectorOpDoesNotExist:
		return n.Operator == metav1.LabelSelectorOpDoesNotExist
	}
	return false
}

// disjoint reports whether nothing can meet both, as far as their words show.
func disjoint(a, b *metav1.LabelSelector) bool {
	other := requirements(b)
	return slices.ContainsFunc(requirements(a), func(x metav1.LabelSelectorRequirement) bool {
		return slices.ContainsFunc(other, func(y metav1.LabelSelectorRequirement) bool { return contradict(x, y) || contradict(y, x) })
	})
}

func contradict(x, y metav1.LabelSelectorRequirement) bool {
	if x.Key != y.Key {
		return false
	}
	switch x.Operator {
	case metav1.LabelSelectorOpIn:
		return y.Operator == metav1.LabelSelectorOpIn && !common(x.Values, y.Values) ||
			y.Operator == metav1.LabelSelectorOpNotIn && subset(x.Values, y.Values) || y.Operator == metav1.LabelSelectorOpDoesNotExist
	case metav1.LabelSelectorOpExists:
		return y.Operator == metav1.LabelSelectorOpDoesNotExist
	}
	return false
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(v string) bool { return !slices.Contains(b, v) })
}

func common(a, b []string) bool {
	return slices.ContainsFunc(a, func(v string) bool { return slices.Contains(b, v) })
}

// names returns the namespaces that a selector of namespaces names, if it names any.
func names(s *metav1.LabelSelector) []string {
	for _, r := range requirements(s) {
		if r.Key == nameLabel && r.Operator == metav1.LabelSelectorOpIn {
			return r.Values
		}
	}
	return nil
}

// namespaceNamed selects one namespace by its name.
func namespaceNamed(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{nameLabel: name}}
}

// describe says what a selector wants in the notation of kubectl, in stable order; "" when it wants nothing.
func describe(s *metav1.LabelSelector) string {
	var parts []string
	for _, r := range requirements(s) {
		values := strings.Join(r.Values, ",")
		switch r.Operator {
		case metav1.LabelSelectorOpIn:
			if len(r.Values) == 1 {
				parts = append(parts, r.Key+"="+values)
			} else {
				parts = append(parts, r.Key+" in ("+values+")")
			}
		case metav1.LabelSelectorOpNotIn:
			parts = append(parts, r.Key+" notin ("+values+")")
		case metav1.LabelSelectorOpExists:
			parts = append(parts, r.Key)
		case metav1.LabelSelectorOpDoesNotExist:
			parts = append(parts, "!"+r.Key)
		default:
			parts = append(parts, r.Key+" "+string(r.Operator)+"?")
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}
