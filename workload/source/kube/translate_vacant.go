package kube

import (
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// written are the rules of a policy as they were written. A list of
// alternatives that is there but empty ("principals: []", what templates make
// of no values) cannot be told from one that is not there once it is decoded,
// and would mean everybody.
type written []any

func writtenRules(u *unstructured.Unstructured) written {
	spec, _ := u.Object["spec"].(map[string]any)
	rules, _ := spec["rules"].([]any)
	return rules
}

// rule returns a rule as it was written; it may be nil, and then lacks nothing.
func (w written) rule(i int) writtenRule {
	if i >= len(w) {
		return nil
	}
	r, _ := w[i].(map[string]any)
	return r
}

type writtenRule map[string]any

// vacant returns which of its lists of clauses are empty.
func (r writtenRule) vacant() []string { return vacant(r, "", "from", "to") }

// source, operation and condition return which lists of alternatives are empty
// in one of them.

func (r writtenRule) source(i int) []string {
	return vacant(r.item("from", i, "source"), "from "+strconv.Itoa(i)+": ",
		"principals", "namespaces", "serviceAccounts", "ipBlocks", "remoteIpBlocks", "requestPrincipals", "trustDomains")
}

func (r writtenRule) operation(i int) []string {
	return vacant(r.item("to", i, "operation"), "to "+strconv.Itoa(i)+": ", "ports", "hosts", "methods", "paths")
}

func (r writtenRule) condition(i int) []string {
	return vacant(r.item("when", i, ""), "when "+strconv.Itoa(i)+": ", "values")
}

// item returns the part, if it has a name, of an item of a list.
func (r writtenRule) item(list string, i int, part string) map[string]any {
	items, _ := r[list].([]any)
	if i >= len(items) {
		return nil
	}
	m, _ := items[i].(map[string]any)
	if part != "" {
		m, _ = m[part].(map[string]any)
	}
	return m
}

// vacant returns those of the fields that are there and empty.
func vacant(in map[string]any, at string, fields ...string) (out []string) {
	for _, f := range fields {
		value, there := in[f]
		list, ok := value.([]any)
		if there && (value == nil || ok && len(list) == 0) {
			out = append(out, at+f)
		}
	}
	return out
}
