// Package truth makes worlds of pods and NetworkPolicies whose connections can
// be judged: by the agents of a cluster, by the evaluator alone, and by an
// oracle that nobody here wrote (e2e/netpol, a module of its own). It judges
// nothing itself.
//
// Policies are such that an API server takes them, and avoid what the oracle
// is known to read in another way than the API (its tests say what).
//
// Its functions may be called by any number of goroutines.
package truth

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Namespace is a namespace with its labels, without those that the API server
// sets.
type Namespace struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
}

// Pod is a pod, or an address outside of the cluster when it has no namespace.
type Pod struct {
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Address   netip.Addr        `json:"address"`
	// Named are the ports that have names.
	Named map[string]int32 `json:"named,omitempty"`
}

// String returns "namespace/name".
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// Round is one state of a world: what the oracle is asked about.
type Round struct {
	Namespaces []Namespace                  `json:"namespaces"`
	Pods       []Pod                        `json:"pods"`
	Ports      []int32                      `json:"ports"`
	Policies   []networkingv1.NetworkPolicy `json:"policies"`
}

// Verdict is the oracle's on one connection over TCP: whether the policies of
// the source let it out, and those of the destination let it in.
type Verdict struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Port    int32  `json:"port"`
	Egress  bool   `json:"egress"`
	Ingress bool   `json:"ingress"`
}

// Labels that pods and namespaces of a world have, all of them, with one of
// these values.
const (
	PodKey   = "pod"
	TierKey  = "tier"
	SpaceKey = "space"
)

// Tiers are the values of TierKey.
func Tiers() []string { return []string{"front", "back"} }

// Names of ports.
const (
	MainPort  = "main"
	OtherPort = "other"
)

// Policies returns up to n policies, at least one, all in namespaces of the
// world, with names that begin with the prefix.
func Policies(rng *rand.Rand, w *Round, prefix string, n int) []networkingv1.NetworkPolicy {
	g := generator{rng, w}
	var out []networkingv1.NetworkPolicy
	for i := range 1 + rng.IntN(n) {
		out = append(out, networkingv1.NetworkPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
			ObjectMeta: metav1.ObjectMeta{Namespace: pick(rng, w.Namespaces).Name, Name: fmt.Sprintf("%s-%d", prefix, i)},
			Spec:       g.spec(),
		})
	}
	return out
}

// Default sets what an API server sets where a policy leaves it out: "If no
// policyTypes are specified on a NetworkPolicy then by default Ingress will
// always be set and Egress will be set if the NetworkPolicy has any egress
// rules."
func Default(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) > 0 {
		return
	}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if len(p.Spec.Egress) > 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
}

func pick[T any](rng *rand.Rand, of []T) T { return of[rng.IntN(len(of))] }
