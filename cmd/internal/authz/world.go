package authz

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
)

// Settings are those of the mesh that the objects are of, as the controller has them; an empty text stands for the
// controller's default.
type Settings struct {
	TrustDomain        string
	TrustDomainAliases []string
	RootNamespace      string
	Domain, ClusterID  string
	Network            string
	LenientL7          bool
}

// World is a set of objects and what they mean.
type World struct {
	settings    Settings
	translation *kube.Translation
	store       *workload.Snapshot
	policies    *policy.Snapshot

	objects    []*unstructured.Unstructured // without those made of templates
	namespaces map[string]map[string]string // labels by name, never nil
	declared   bool                         // there are namespaces among the objects
	accounts   map[account]bool
	accountsIn map[string]bool // namespaces of which accounts are known
	pods       []*pod          // by namespace and name
	authz      []*authorization
	byKey      map[string]*authorization
	peers      []*peerAuthentication
}

type account struct{ namespace, name string }

// pod is what is kept of a pod, or of a template that pods are made of.
type pod struct {
	namespace, name string
	labels          map[string]string
	account         string
	owner           owner
	ports           map[uint16]bool // of its containers
	// template pods do not run: their address is not known, and addr stands for it.
	template bool
	// in says that the agent captures its traffic, or will.
	in       bool
	addr     netip.Addr
	workload *workload.Workload
}

// owner is what a user made to get the pod; the pod itself if nothing else.
type owner struct{ kind, name string }

func (o owner) String() string { return strings.ToLower(o.kind) + "/" + o.name }

func (p *pod) key() string { return p.namespace + "/" + p.name }

// title is what a person calls the workload.
func (p *pod) title() string { return p.namespace + "/" + p.owner.String() }

// authorization is one AuthorizationPolicy.
type authorization struct {
	namespace, name string
	action          string // as written; ALLOW when nothing is
	selector        map[string]string
	annotation      string // istio.io/dry-run
	dryRun          bool
	attached        bool           // to something with a waypoint, by targetRefs
	policy          *policy.Policy // what agents judge by; nil when nothing
	condition       kube.Condition // what its status is to say
	rules           []kube.RuleMeaning
	written         []any // the rules as they are written
}

func (a *authorization) key() string { return a.namespace + "/" + a.name }

// enforced reports whether agents decide by it.
func (a *authorization) enforced() bool {
	return a.policy != nil && !a.policy.DryRun && (a.policy.Action == policy.Allow || a.policy.Action == policy.Deny)
}

func (a *authorization) invalid() bool { return a.policy != nil && a.policy.Invalid != "" }

// peerAuthentication is one PeerAuthentication.
type peerAuthentication struct {
	namespace, name string
	selector        map[string]string
	condition       kube.Condition // what its status is to say; zero when it is simply in force
}

// GroupResources are the resources whose objects New wants to have all of.
func GroupResources() []schema.GroupVersionResource {
	at := func(group, version, resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
	}
	return []schema.GroupVersionResource{
		at("", "v1", "namespaces"), at("", "v1", "pods"), at("", "v1", "services"), at("", "v1", "serviceaccounts"),
		at("discovery.k8s.io", "v1", "endpointslices"),
		at("networking.istio.io", "v1", "serviceentries"), at("networking.istio.io", "v1", "workloadentries"),
		at("security.istio.io", "v1", "peerauthentications"), at("security.istio.io", "v1", "authorizationpolicies"),
		at("gateway.networking.k8s.io", "v1", "gateways"), at("gateway.networking.k8s.io", "v1", "gatewayclasses"),
	}
}

// New makes a World of objects of any kinds; those that say nothing about policy are ignored. Objects without a namespace,
// of kinds that live in one, are taken to be in the given one. Deployments and the like stand for a pod each, unless there
// are pods of theirs.
func New(objects []*unstructured.Unstructured, namespace string, s Settings) (*World, error) {
	s.TrustDomain = cmp.Or(s.TrustDomain, workload.DefaultTrustDomain)
	s.RootNamespace = cmp.Or(s.RootNamespace, kube.DefaultRootNamespace)
	w := &World{
		settings: s, namespaces: make(map[string]map[string]string),
		accounts: make(map[account]bool), accountsIn: make(map[string]bool), byKey: make(map[string]*authorization),
	}
	w.objects = placed(objects, namespace)
	for _, u := range w.objects {
		if u.GroupVersionKind().GroupKind() == (schema.GroupKind{Kind: "Namespace"}) {
			w.addNamespace(u.GetName(), u.GetLabels())
			w.declared = true
		}
	}
	all := slices.Clone(w.objects)
	for _, u := range w.objects {
		if ns := u.GetNamespace(); ns != "" && w.namespaces[ns] == nil {
			w.addNamespace(ns, nil)
			all = append(all, namespaceObject(ns))
		}
	}
	made, err := w.collectPods()
	if err != nil {
		return nil, err
	}
	all = append(append(all, made...), w.imagineServices()...)
	if w.translation, err = kube.Translate(kube.Config{
		ClusterID: s.ClusterID, TrustDomain: s.TrustDomain, TrustDomainAliases: s.TrustDomainAliases, Domain: s.Domain, Network: s.Network,
		RootNamespace: s.RootNamespace, LenientL7: s.LenientL7,
	}, all); err != nil {
		return nil, err
	}
	w.store, w.policies = w.translation.Store.Snapshot(), w.translation.Policies.Snapshot()
	w.collectPolicies()
	w.join()
	return w, nil
}

// placed returns the objects with a namespace where they need one; the same object twice counts once, the later one.
func placed(objects []*unstructured.Unstructured, namespace string) []*unstructured.Unstructured {
	type id struct {
		group, kind, namespace, name string
	}
	at := make(map[id]int, len(objects))
	out := make([]*unstructured.Unstructured, 0, len(objects))
	for _, u := range objects {
		gvk := u.GroupVersionKind()
		switch gvk.Kind {
		case "Namespace", "Node", "GatewayClass":
		default:
			if u.GetNamespace() == "" && namespace != "" {
				u = u.DeepCopy()
				u.SetNamespace(namespace)
			}
		}
		k := id{gvk.Group, gvk.Kind, u.GetNamespace(), u.GetName()}
		if i, there := at[k]; there {
			out[i] = u
			continue
		}
		at[k] = len(out)
		out = append(out, u)
	}
	return out
}

func (w *World) addNamespace(name string, labels map[string]string) {
	if labels == nil {
		labels = map[string]string{}
	}
	w.namespaces[name] = labels
}

func namespaceObject(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name},
	}}
}

func (w *World) collectPolicies() {
	conditions := make(map[[3]string]kube.Condition)
	for _, r := range w.translation.Reports {
		if len(r.Want) > 0 {
			conditions[[3]string{r.Kind, r.Namespace, r.Name}] = r.Want[0]
		}
	}
	for _, u := range w.objects {
		gk := u.GroupVersionKind().GroupKind()
		if gk.Group != "security.istio.io" {
			continue
		}
		condition := conditions[[3]string{gk.Kind, u.GetNamespace(), u.GetName()}]
		selector, _, _ := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
		switch gk.Kind {
		case "AuthorizationPolicy":
			action, _, _ := unstructured.NestedString(u.Object, "spec", "action")
			a := &authorization{
				namespace: u.GetNamespace(), name: u.GetName(), action: cmp.Or(action, "ALLOW"), selector: selector,
				annotation: u.GetAnnotations()["istio.io/dry-run"], condition: condition, rules: w.translation.Rules(u),
			}
			a.written, _, _ = unstructured.NestedSlice(u.Object, "spec", "rules")
			a.policy = w.policies.Policy(a.key())
			a.dryRun = a.policy != nil && a.policy.DryRun
			a.attached = condition.Type == "WaypointAccepted"
			w.authz, w.byKey[a.key()] = append(w.authz, a), a
		case "PeerAuthentication":
			p := &peerAuthentication{namespace: u.GetNamespace(), name: u.GetName(), selector: selector, condition: condition}
			w.peers = append(w.peers, p)
		}
	}
	slices.SortFunc(w.authz, func(a, b *authorization) int { return cmp.Compare(a.key(), b.key()) })
	slices.SortFunc(w.peers, func(a, b *peerAuthentication) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
}

// join finds each pod's workload.
func (w *World) join() {
	byPod := make(map[string]*workload.Workload)
	for wl := range w.store.Workloads() {
		if _, key, ok := strings.Cut(wl.UID, "//Pod/"); ok {
			byPod[key] = wl
		}
	}
	w.pods = slices.DeleteFunc(w.pods, func(p *pod) bool {
		p.workload = byPod[p.key()]
		if p.workload != nil && len(p.workload.Addresses) > 0 {
			p.addr = p.workload.Addresses[0]
		}
		return p.workload == nil // it has no address yet
	})
	slices.SortFunc(w.pods, func(a, b *pod) int { return cmp.Compare(a.key(), b.key()) })
}

// Namespaces returns the names of all namespaces that objects are in or that are objects, sorted.
func (w *World) Namespaces() []string { return slices.Sorted(maps.Keys(w.namespaces)) }

// selected returns whether the agent is to capture the pod, by its labels and those of its namespace.
func (w *World) selected(p *corev1.Pod) bool {
	return enrol.Decide(enrol.Pod{
		Namespace: p.Namespace, Name: p.Name, HostNetwork: p.Spec.HostNetwork, Labels: p.Labels, Annotations: p.Annotations,
	}, enrol.Namespace{Labels: w.namespaces[p.Namespace]}, enrol.Settings{}).In
}

func objectError(u *unstructured.Unstructured, err error) error {
	return fmt.Errorf("read %s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
}
