package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Condition is one condition of an object's status.
type Condition struct {
	Type   string
	Status bool
	// Reason is a word for programs, Message a sentence for people.
	Reason, Message string
	// ObservedGeneration is the generation of the object that it speaks of.
	ObservedGeneration int64
}

// decodeSpec reads the spec of a custom resource. A policy is read strictly: a
// field that this version does not know could be a condition, without which it
// would be wider than written.
func decodeSpec(u *unstructured.Unstructured, into proto.Message, strict bool) error {
	spec, ok := u.Object["spec"]
	if !ok || spec == nil {
		return nil // no spec is an empty one
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: !strict}).Unmarshal(b, into); err != nil {
		return errors.New("read spec: " + plain(err.Error()))
	}
	return nil
}

// decodeSelection reads, of a spec that cannot be read as a whole, the fields
// that say whom it governs. It reports false when those cannot be read either,
// or when the spec has a field that is not known: that could be one of them.
func decodeSelection(u *unstructured.Unstructured, into proto.Message, fields ...string) bool {
	proto.Reset(into)
	spec, ok := u.Object["spec"].(map[string]any)
	if !ok {
		return false
	}
	known := into.ProtoReflect().Descriptor().Fields()
	some := make(map[string]any, len(fields))
	for name, value := range spec {
		if known.ByJSONName(name) == nil {
			return false
		}
		if slices.Contains(fields, name) {
			some[name] = value
		}
	}
	part := &unstructured.Unstructured{Object: map[string]any{"spec": some}}
	if decodeSpec(part, into, true) != nil {
		proto.Reset(into)
		return false
	}
	return true
}

// plain makes protojson's error text stable: it varies its spaces on purpose.
func plain(s string) string {
	return bounded(strings.Join(strings.Fields(strings.ReplaceAll(s, "\u00a0", " ")), " "))
}

// maxConditions bounds how many conditions of a status are looked at.
const maxConditions = 64

// istioConditions reads those conditions of a status that are this package's.
func istioConditions(u *unstructured.Unstructured) []Condition {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	var out []Condition
	for _, item := range list[:min(len(list), maxConditions)] {
		m, ok := item.(map[string]any)
		if !ok {
			continue
		}
		c := Condition{}
		c.Type, _ = m["type"].(string)
		if !managed(c.Type) {
			continue
		}
		status, _ := m["status"].(string)
		c.Status = status == string(metav1.ConditionTrue)
		c.Reason, _ = m["reason"].(string)
		c.Message, _ = m["message"].(string)
		c.ObservedGeneration = generationOf(m["observedGeneration"])
		out = append(out, c)
	}
	return out
}

// generationOf reads an int64 as protobuf's JSON may write it: a number or a
// string.
func generationOf(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case float64:
		return int64(v)
	case string:
		var n int64
		if json.Unmarshal([]byte(v), &n) == nil {
			return n
		}
	}
	return 0
}

// coreConditions is the same for a built-in kind.
func coreConditions(list []metav1.Condition) []Condition {
	var out []Condition
	for i := range list {
		c := &list[i]
		if managed(c.Type) {
			out = append(out, Condition{
				Type: c.Type, Status: c.Status == metav1.ConditionTrue, Reason: c.Reason, Message: c.Message,
				ObservedGeneration: c.ObservedGeneration,
			})
		}
	}
	return out
}

// older orders objects by age, then by key, so that all decide alike.
func older(a, b *header) bool {
	if a.created != b.created {
		return a.created < b.created
	}
	if a.namespace != b.namespace {
		return a.namespace < b.namespace
	}
	return a.name < b.name
}
