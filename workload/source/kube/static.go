package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// Translation is what a set of objects means, translated once: what a Source
// would have written had a cluster held exactly these objects. It is for
// questions about policies that are not in force, or asked from outside of the
// controller. It does not change and may be read by any goroutine.
type Translation struct {
	Store    *workload.Store
	Policies *policy.Set
	// NetworkPolicies is what network policies are made of.
	NetworkPolicies *netpol.Set
	// Reports are the conditions that objects are to have, whatever their
	// statuses say. Have is empty.
	Reports []Report

	state *state
}

// Translate translates the objects, of any kinds; those of kinds that no
// Source watches are ignored. Of cfg only the fields before Store count, and
// Logger, which gets faults of objects. It fails when an object of a built-in
// kind does not have the shape of its kind.
func Translate(cfg Config, objects []*unstructured.Unstructured) (*Translation, error) {
	cfg = cfg.withDefaults()
	if err := cfg.checkDomains(); err != nil {
		return nil, fmt.Errorf("translate objects: %w", err)
	}
	st := newState(cfg.settings(), cfg.Logger)
	for _, u := range objects {
		k, o, err := st.trimUnstructured(u)
		if err != nil {
			return nil, fmt.Errorf("translate %s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
		}
		if o != nil {
			st.apply(change{ref: ref{k, o.head().key}, object: o})
		}
	}
	t := &Translation{Store: workload.New(), Policies: policy.New(), NetworkPolicies: netpol.New(), state: st}
	b := st.flush()
	t.NetworkPolicies.Apply(b.networks, b.networkRemovals)
	t.NetworkPolicies.SetReady(true)
	t.Policies.Apply(b.policies, nil)
	t.Store.Apply(b.events)
	for _, r := range b.reports {
		if r != nil {
			t.Reports = append(t.Reports, *r)
		}
	}
	slices.SortFunc(t.Reports, func(a, b Report) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return t, nil
}

// trimUnstructured trims an object as its watch would; nil for one that is not
// watched. Conditions that it has are forgotten.
func (st *state) trimUnstructured(u *unstructured.Unstructured) (kind, object, error) {
	gvk := u.GroupVersionKind()
	switch {
	case gvk.Group == "" && gvk.Kind == "Pod":
		o, err := trimTyped(u, trimPod)
		return kindPod, o, err
	case gvk.Group == "" && gvk.Kind == "Service":
		o, err := trimTyped(u, func(s *corev1.Service) *serviceObject {
			s.Status.Conditions = nil
			return trimService(s)
		})
		return kindService, o, err
	case gvk.Group == "" && gvk.Kind == "Node":
		o, err := trimTyped(u, trimNode)
		return kindNode, o, err
	case gvk.Group == "" && gvk.Kind == "Namespace":
		o, err := trimTyped(u, trimNamespace)
		return kindNamespace, o, err
	case gvk.Group == discoveryv1.GroupName && gvk.Kind == "EndpointSlice":
		if u.GetLabels()[discoveryv1.LabelManagedBy] == "endpointslice-controller.k8s.io" {
			return kindEndpointSlice, nil, nil // the pods' labels say the same
		}
		o, err := trimTyped(u, trimSlice)
		return kindEndpointSlice, o, err
	case gvk.Group == networkingv1.GroupName && gvk.Kind == "NetworkPolicy":
		o, err := trimTyped(u, translateNetworkPolicy)
		return kindNetworkPolicy, o, err
	}
	for _, c := range customResources() {
		if c.resource.Group == gvk.Group && c.kind.String() == gvk.Kind {
			bare := &unstructured.Unstructured{Object: map[string]any{}}
			for k, v := range u.Object {
				if k != "status" || c.kind == kindGateway || c.kind == kindGatewayClass {
					bare.Object[k] = v
				}
			}
			o, err := st.trimCustom(c.kind)(bare)
			return c.kind, o, err
		}
	}
	return 0, nil, nil
}

// trimTyped converts an object of a built-in kind and trims it.
func trimTyped[F any, T object](u *unstructured.Unstructured, trim func(*F) T) (object, error) {
	var typed F
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &typed); err != nil {
		return nil, err
	}
	return trim(&typed), nil
}

// RuleMeaning is what agents make of one rule of an AuthorizationPolicy.
type RuleMeaning struct {
	// Clauses are those of the rule in policy.Policy; meaningless when Never.
	Clauses [][]policy.Match
	// Never says that the rule can never match: it is of an ALLOW policy and
	// has conditions that agents cannot judge.
	Never bool
	// Note says what agents do not enforce of it; empty when they enforce all.
	Note string
	// Vacant names the lists of the rule that are written down and empty: an
	// ALLOW rule with one never matches, elsewhere they are passed over.
	Vacant []string
	// Fault says why the rule cannot be read; empty when it can.
	Fault string
}

// Rules returns what agents make of the rules of an AuthorizationPolicy, in
// the order of the object, of which rules that never match are missing in the
// translated policy. It is nil for a policy that has none, is for waypoints or
// cannot be read as a whole.
func (t *Translation) Rules(u *unstructured.Unstructured) []RuleMeaning {
	spec, ok := u.Object["spec"].(map[string]any)
	if !ok {
		return nil
	}
	rules, _ := spec["rules"].([]any)
	var out []RuleMeaning
	for _, r := range rules {
		one := make(map[string]any, len(spec))
		for k, v := range spec {
			one[k] = v
		}
		one["rules"] = []any{r}
		o, found := readAuthorization(&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": u.Object["metadata"], "spec": one,
		}}, &t.state.settings)
		if o.policy == nil {
			return nil
		}
		alone := func(text string) string { return strings.TrimPrefix(text, atRule(0)) }
		m := RuleMeaning{Fault: alone(o.policy.Invalid)}
		if m.Fault == "" {
			m.Note = found.unenforced()
		}
		for _, list := range found.vacant {
			m.Vacant = append(m.Vacant, alone(list))
		}
		if len(o.policy.Rules) == 0 {
			m.Never = m.Fault == ""
		} else {
			m.Clauses = o.policy.Rules[0]
		}
		out = append(out, m)
	}
	return out
}

// Governs reports whether the AuthorizationPolicy of that name is for workloads
// with these labels in the namespace: whether agents judge by it there, be it
// for a dry run. One with targetRefs is for none.
func (t *Translation) Governs(policyNamespace, policyName, namespace string, labels map[string]string) bool {
	o := t.state.authorizations.get(key{policyNamespace, policyName})
	return o != nil && o.policy != nil && (o.namespace == namespace || o.namespace == t.state.root) && makePairs(labels).contains(o.selector)
}

// PeerMode is what PeerAuthentication asks of a workload.
type PeerMode struct {
	// Mode of all ports that Ports does not have: STRICT, PERMISSIVE or DISABLE.
	Mode string
	// From is the PeerAuthentication that sets Mode ("namespace/name"); empty
	// when none does.
	From string
	// Ports have a mode of their own, set by PortsFrom.
	Ports     map[uint16]string
	PortsFrom string
	// Fault says why From or PortsFrom could not be read; it counts as STRICT.
	Fault string
}

// PeerMode returns the mode of a workload with these labels.
func (t *Translation) PeerMode(namespace string, labels map[string]string) PeerMode {
	st := t.state
	out := PeerMode{Mode: modePermissive.String()}
	take := func(o *peerAuthenticationObject) {
		if o == nil {
			return
		}
		if o.mode != modeUnset {
			out.Mode, out.From = o.mode.String(), o.key.String()
		}
		if o.fault != "" {
			out.Fault = o.fault
		}
	}
	take(st.levelOf(st.root))
	if namespace != st.root {
		take(st.levelOf(namespace))
	}
	own := st.peerOf(namespace, makePairs(labels))
	take(own)
	if own == nil {
		return out
	}
	for port, m := range own.ports {
		if m != modeUnset && m.String() != out.Mode {
			if out.Ports == nil {
				out.Ports = make(map[uint16]string)
			}
			out.Ports[port], out.PortsFrom = m.String(), own.key.String()
		}
	}
	return out
}

// String returns the name of the mode in the API.
func (m mode) String() string { return [...]string{"UNSET", "DISABLE", "PERMISSIVE", "STRICT"}[m] }
