package netpolcheck

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// LabelManagedBy with ManagedBy is on every companion.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "culvert"
	// LabelCompanionOf is on every companion, with the UID of the policy that it belongs to.
	LabelCompanionOf = "culvert.io/companion-of"
	// CompanionSelector finds them all.
	CompanionSelector = LabelManagedBy + "=" + ManagedBy + "," + LabelCompanionOf
)

// IsCompanion reports whether a policy is a companion; such a one has none of its own.
func IsCompanion(p *networkingv1.NetworkPolicy) bool {
	return p.Labels[LabelManagedBy] == ManagedBy && p.Labels[LabelCompanionOf] != ""
}

// CompanionSpec returns the policy that stands beside the one of a user and adds the port of HBONE, nil when none is needed. It selects the same
// pods, for the same directions: one that selected more would isolate pods that nothing isolated. Its rules allow TCP
// 15008, and nothing else, for the peers of those rules that name TCP ports without it. It does not depend on who is in
// the mesh at the moment, so that it is there before a namespace joins.
func CompanionSpec(p *networkingv1.NetworkPolicy, m Mesh) *networkingv1.NetworkPolicySpec {
	if IsCompanion(p) || slices.Contains(m.Enrolment.Exclude, p.Namespace) {
		return nil
	}
	v := newView(&Input{Mesh: m})
	spec := networkingv1.NetworkPolicySpec{PodSelector: *p.Spec.PodSelector.DeepCopy(), PolicyTypes: slices.Clone(typesOf(&p.Spec))}
	for _, r := range rulesOf(p) {
		if _, lacks := v.judge(r, p, nil, nil); !lacks {
			continue
		}
		peers := make([]networkingv1.NetworkPolicyPeer, len(r.from))
		for i := range r.from {
			r.from[i].DeepCopyInto(&peers[i])
		}
		if r.direction == Ingress {
			spec.Ingress = append(spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: []networkingv1.NetworkPolicyPort{portEntry()}})
		} else {
			spec.Egress = append(spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: []networkingv1.NetworkPolicyPort{portEntry()}})
		}
	}
	if len(spec.Ingress)+len(spec.Egress) == 0 {
		return nil
	}
	return &spec
}

// CompanionName returns the name of a policy's companion: the policy's own, and what makes it different from every other's.
// Further attempts give further names, for when one is taken.
func CompanionName(p *networkingv1.NetworkPolicy, attempt int) string {
	suffix := companionSuffix(string(p.UID), attempt)
	name := p.Name[:min(len(p.Name), validation.DNS1123SubdomainMaxLength-len(suffix))]
	return strings.TrimRight(name, ".-") + suffix
}

// IsCompanionName reports whether CompanionName gives such a name to the companion of the policy with this UID, whatever
// the policy's own name is.
func IsCompanionName(name, uid string, attempt int) bool {
	return strings.HasSuffix(name, companionSuffix(uid, attempt))
}

func companionSuffix(uid string, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", uid, attempt))
	return "-hbone-" + hex.EncodeToString(sum[:4])
}

// SetCompanion makes a policy the companion of another: labels, owner and spec. Labels and annotations of others stay.
func SetCompanion(companion, of *networkingv1.NetworkPolicy, spec *networkingv1.NetworkPolicySpec) {
	if companion.Labels == nil {
		companion.Labels = make(map[string]string)
	}
	companion.Labels[LabelManagedBy], companion.Labels[LabelCompanionOf] = ManagedBy, string(of.UID)
	controller := true
	companion.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy", Name: of.Name, UID: of.UID, Controller: &controller,
	}}
	companion.Spec = *spec
}

// SameSpec reports whether two policies mean the same, as an API server would store them.
func SameSpec(a, b *networkingv1.NetworkPolicySpec) bool { return equality.Semantic.DeepEqual(a, b) }

// companion judges one that is there: whether it stays within what its policy allows and selects. Whether it adds enough
// shows at the policy.
func (v *view) companion(c *networkingv1.NetworkPolicy, policies []*networkingv1.NetworkPolicy) (State, string) {
	i := slices.IndexFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
		return p.Namespace == c.Namespace && string(p.UID) == c.Labels[LabelCompanionOf] && !IsCompanion(p)
	})
	if i < 0 {
		return Stale, "the policy that it is a companion of does not exist: delete it, or it isolates pods for nobody"
	}
	of := policies[i]
	have := rulesOf(of)
	within := covers(&of.Spec.PodSelector, &c.Spec.PodSelector) &&
		(selects(of, Ingress) || !selects(c, Ingress)) && (selects(of, Egress) || !selects(c, Egress))
	for _, r := range rulesOf(c) {
		var peers []peer
		for _, h := range have {
			if h.direction == r.direction && !h.ports.none() {
				peers = append(peers, h.peers...)
			}
		}
		within = within && len(r.list) == 1 && portText(r.list[0]) == portText(portEntry()) && v.coversAll(peers, r.peers)
	}
	if !within {
		return Stale, fmt.Sprintf("it does more than its policy %s: does the controller run, with netpol.companions?", of.Name)
	}
	return Companion, fmt.Sprintf("of %s: adds TCP %d for its pods and peers", of.Name, Port)
}
