package truth

import (
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

type generator struct {
	rng   *rand.Rand
	world *Round
}

func (g *generator) chance(percent int) bool { return g.rng.IntN(100) < percent }

func (g *generator) spec() networkingv1.NetworkPolicySpec {
	spec := networkingv1.NetworkPolicySpec{PodSelector: *g.podSelector()}
	// Nil and empty lists of rules are the same.
	if g.chance(30) {
		spec.Ingress, spec.Egress = []networkingv1.NetworkPolicyIngressRule{}, []networkingv1.NetworkPolicyEgressRule{}
	}
	for range g.rng.IntN(4) {
		spec.Ingress = append(spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(), Ports: g.ports()})
	}
	for range g.rng.IntN(4) {
		spec.Egress = append(spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(), Ports: g.ports()})
	}
	switch g.rng.IntN(4) {
	case 0:
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	case 1:
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	case 2:
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	return spec
}

func (g *generator) podSelector() *metav1.LabelSelector {
	return g.selector(map[string]func() string{
		PodKey:  func() string { return pick(g.rng, g.world.Pods).Labels[PodKey] },
		TierKey: func() string { return pick(g.rng, Tiers()) },
	})
}

func (g *generator) namespaceSelector() *metav1.LabelSelector {
	return g.selector(map[string]func() string{
		SpaceKey:                 func() string { return pick(g.rng, g.world.Namespaces).Labels[SpaceKey] },
		corev1.LabelMetadataName: func() string { return pick(g.rng, g.world.Namespaces).Name },
	})
}

// selector makes a selector over keys that every object has, or for Exists and
// its opposite of one that none has.
func (g *generator) selector(values map[string]func() string) *metav1.LabelSelector {
	s := new(metav1.LabelSelector)
	var keys []string
	for _, k := range []string{PodKey, TierKey, SpaceKey, corev1.LabelMetadataName} {
		if values[k] != nil {
			keys = append(keys, k)
		}
	}
	value := func(key string) string { // addresses outside have no labels
		for {
			if v := values[key](); v != "" {
				return v
			}
		}
	}
	switch g.rng.IntN(8) {
	case 0, 1: // everything
	case 2, 3:
		key := pick(g.rng, keys)
		s.MatchLabels = map[string]string{key: value(key)}
	case 4:
		s.MatchLabels = map[string]string{}
		for _, key := range keys {
			s.MatchLabels[key] = value(key)
		}
	default:
		for range 1 + g.rng.IntN(2) {
			s.MatchExpressions = append(s.MatchExpressions, g.requirement(pick(g.rng, keys), value))
		}
	}
	return s
}

func (g *generator) requirement(key string, value func(string) string) metav1.LabelSelectorRequirement {
	r := metav1.LabelSelectorRequirement{Key: key, Operator: pick(g.rng, []metav1.LabelSelectorOperator{
		metav1.LabelSelectorOpIn, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn,
		metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist,
	})}
	switch r.Operator {
	case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
		for range 1 + g.rng.IntN(2) {
			r.Values = append(r.Values, value(key))
		}
	default:
		if g.chance(50) {
			r.Key = "absent"
		}
	}
	return r
}

func (g *generator) peers() []networkingv1.NetworkPolicyPeer {
	if g.chance(15) {
		return pick(g.rng, [][]networkingv1.NetworkPolicyPeer{nil, {}}) // both are everybody
	}
	var out []networkingv1.NetworkPolicyPeer
	for range 1 + g.rng.IntN(2) {
		var p networkingv1.NetworkPolicyPeer
		switch g.rng.IntN(5) {
		case 0:
			p.PodSelector = g.podSelector()
		case 1:
			p.NamespaceSelector = g.namespaceSelector()
		case 2, 3:
			p.PodSelector, p.NamespaceSelector = g.podSelector(), g.namespaceSelector()
		default:
			p.IPBlock = g.block()
		}
		out = append(out, p)
	}
	return out
}

// block is around the address of a pod; exceptions are narrower, around
// another one or the same, as an API server demands.
func (g *generator) block() *networkingv1.IPBlock {
	a := pick(g.rng, g.world.Pods).Address
	widths := []int{0, 8, 16, 20, 24, 28, 31, 32}
	if a.Is6() {
		widths = []int{0, 7, 16, 48, 64, 112, 127, 128}
	}
	width := g.rng.IntN(len(widths))
	within := around(a, widths[width])
	b := &networkingv1.IPBlock{CIDR: within.String()}
	for range g.rng.IntN(3) {
		e := pick(g.rng, g.world.Pods).Address
		if width+1 < len(widths) && within.Contains(e) {
			b.Except = append(b.Except, around(e, widths[width+1+g.rng.IntN(len(widths)-width-1)]).String())
		}
	}
	return b
}

func around(a netip.Addr, bits int) netip.Prefix { return netip.PrefixFrom(a, bits).Masked() }

func (g *generator) ports() []networkingv1.NetworkPolicyPort {
	if g.chance(35) {
		return pick(g.rng, [][]networkingv1.NetworkPolicyPort{nil, {}}) // both are all ports
	}
	var out []networkingv1.NetworkPolicyPort
	for range 1 + g.rng.IntN(2) {
		var p networkingv1.NetworkPolicyPort
		if g.chance(70) { // TCP is the default
			p.Protocol = ptr.To(pick(g.rng, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
		}
		number := pick(g.rng, g.world.Ports)
		switch g.rng.IntN(6) {
		case 0: // all of the protocol
		case 1, 2:
			p.Port = ptr.To(intstr.FromString(pick(g.rng, []string{MainPort, OtherPort, "nobodys"})))
		case 3:
			p.Port, p.EndPort = ptr.To(intstr.FromInt32(number-int32(g.rng.IntN(3)))), ptr.To(number+int32(g.rng.IntN(3)))
		default:
			p.Port = ptr.To(intstr.FromInt32(number))
		}
		out = append(out, p)
	}
	return out
}
