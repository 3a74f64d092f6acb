package netpolcheck

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Operation is one step of a JSON patch.
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// portEntry is what rules lack.
func portEntry() networkingv1.NetworkPolicyPort {
	protocol, port := corev1.ProtocolTCP, intstr.FromInt32(Port)
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
}

// patch adds one entry to each of the rules; the peers are not touched. It holds for just these ports of the rule, so that
// it does not meet another rule when the policy was changed meanwhile.
func patch(missing []rule) []Operation {
	var out []Operation
	for _, r := range missing {
		path := fmt.Sprintf("/spec/%s/%d/ports", r.direction, r.index)
		out = append(out, Operation{"test", path, stored(r.list)}, Operation{"add", path + "/-", portEntry()})
	}
	return out
}

// stored is a rule's ports as an API server keeps them: with their protocol.
func stored(list []networkingv1.NetworkPolicyPort) []networkingv1.NetworkPolicyPort {
	out := slices.Clone(list)
	for i := range out {
		if out[i].Protocol == nil {
			out[i].Protocol = portEntry().Protocol
		}
	}
	return out
}

// Apply adds to a NetworkPolicy, as it was read, what the patch of its finding adds. The object is changed.
func Apply(object map[string]any, patch []Operation) error {
	for _, o := range patch {
		if o.Op != "add" {
			continue
		}
		if err := addPort(object, strings.Split(strings.TrimSuffix(o.Path, "/-"), "/")[1:]); err != nil {
			return fmt.Errorf("patch %s: %w", o.Path, err)
		}
	}
	return nil
}

// addPort appends the entry to the list at the path, which is /spec/<direction>/<rule>/ports.
func addPort(object map[string]any, path []string) error {
	if len(path) != 4 {
		return fmt.Errorf("%d steps", len(path))
	}
	spec, _ := object[path[0]].(map[string]any)
	rules, _ := spec[path[1]].([]any)
	i, err := strconv.Atoi(path[2])
	if err != nil || i < 0 || i >= len(rules) {
		return fmt.Errorf("no rule %s", path[2])
	}
	rule, _ := rules[i].(map[string]any)
	ports, _ := rule[path[3]].([]any)
	if len(ports) == 0 {
		return fmt.Errorf("rule %d has no ports", i)
	}
	rule[path[3]] = append(ports, map[string]any{"protocol": "TCP", "port": int64(Port)})
	return nil
}
