package netpolcheck

import (
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	adminv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// peer is one entry of a rule's peers: pods, or a block of addresses. One that is neither is nobody of the mesh.
type peer struct {
	// namespaces is not nil when the peer is pods; pods is nil for all pods of these namespaces.
	namespaces, pods *metav1.LabelSelector
	// block is valid when the peer is a block of addresses.
	block  netip.Prefix
	except []netip.Prefix
	// unknown marks a form that is not understood.
	unknown bool
}

// everyone is the list of peers of a rule that names none.
func everyone() []peer {
	return []peer{
		{namespaces: &metav1.LabelSelector{}}, {block: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, {block: netip.PrefixFrom(netip.IPv6Unspecified(), 0)},
	}
}

// peersOf reads the peers of a NetworkPolicy's rule; its policy is in the namespace.
func peersOf(list []networkingv1.NetworkPolicyPeer, namespace string) []peer {
	if len(list) == 0 {
		return everyone()
	}
	var out []peer
	for _, entry := range list {
		switch {
		case entry.IPBlock != nil:
			p := peer{block: prefix(entry.IPBlock.CIDR)}
			for _, e := range entry.IPBlock.Except {
				p.except = append(p.except, prefix(e))
			}
			out = append(out, p)
		case entry.NamespaceSelector != nil:
			out = append(out, peer{namespaces: entry.NamespaceSelector, pods: entry.PodSelector})
		case entry.PodSelector != nil:
			out = append(out, peer{namespaces: namespaceNamed(namespace), pods: entry.PodSelector})
		default:
			out = append(out, peer{unknown: true})
		}
	}
	return out
}

// prefix reads a block; what cannot be read is the zero prefix, which holds nothing. An IPv4-mapped one is that of IPv4.
func prefix(text string) netip.Prefix {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func sourcesOf(list []adminv1alpha2.ClusterNetworkPolicyIngressPeer) []peer {
	var out []peer
	for _, entry := range list {
		out = append(out, podsOf(entry.Namespaces, entry.Pods))
	}
	return out
}

func destinationsOf(list []adminv1alpha2.ClusterNetworkPolicyEgressPeer) []peer {
	var out []peer
	for _, entry := range list {
		switch {
		case entry.Namespaces != nil, entry.Pods != nil:
			out = append(out, podsOf(entry.Namespaces, entry.Pods))
		case len(entry.Networks) > 0:
			for _, n := range entry.Networks {
				out = append(out, peer{block: prefix(string(n))})
			}
		case entry.Nodes != nil, len(entry.DomainNames) > 0: // nodes are never in the mesh, nor is what has a domain name
			out = append(out, peer{})
		default:
			out = append(out, peer{unknown: true})
		}
	}
	return out
}

func podsOf(namespaces *metav1.LabelSelector, pods *adminv1alpha2.NamespacedPod) peer {
	switch {
	case namespaces != nil:
		return peer{namespaces: namespaces}
	case pods != nil:
		return peer{namespaces: &pods.NamespaceSelector, pods: &pods.PodSelector}
	}
	return peer{unknown: true}
}

// coversPeer reports whether wide takes all that narrow takes, as far as it shows.
func (v *view) coversPeer(wide, narrow peer) bool {
	switch {
	case wide.namespaces != nil && narrow.namespaces != nil:
		return v.coversNamespaces(wide.namespaces, narrow.namespaces) && covers(wide.pods, narrow.pods)
	case wide.block.IsValid() && narrow.block.IsValid():
		return coversBlock(wide, narrow)
	case wide.namespaces != nil: // of a block only pods matter
		return v.in.Whole && describe(wide.namespaces) == "" && describe(wide.pods) == ""
	}
	return false
}

func (v *view) coversNamespaces(wide, narrow *metav1.LabelSelector) bool {
	if covers(wide, narrow) {
		return true
	}
	named := names(narrow)
	return len(named) > 0 && !slices.ContainsFunc(named, func(name string) bool { return !matches(wide, v.labelsOf(name)) })
}

func coversBlock(wide, narrow peer) bool {
	if wide.block.Bits() > narrow.block.Bits() || !wide.block.Contains(narrow.block.Addr()) {
		return false
	}
	return !slices.ContainsFunc(wide.except, func(hole netip.Prefix) bool {
		return hole.Overlaps(narrow.block) && !slices.ContainsFunc(narrow.except, func(e netip.Prefix) bool {
			return e.Bits() <= hole.Bits() && e.Contains(hole.Addr())
		})
	})
}

// coversAll reports whether each of narrow is taken by one of wide.
func (v *view) coversAll(wide, narrow []peer) bool {
	return !slices.ContainsFunc(narrow, func(n peer) bool {
		return !slices.ContainsFunc(wide, func(w peer) bool { return v.coversPeer(w, n) })
	})
}

// overlap reports whether somebody may be both.
func (v *view) overlap(a, b peer) bool {
	switch {
	case a.unknown || b.unknown:
		return true
	case a.namespaces != nil && b.namespaces != nil:
		return v.overlapNamespaces(a.namespaces, b.namespaces) && !disjoint(a.pods, b.pods)
	case a.block.IsValid() && b.block.IsValid():
		return a.block.Overlaps(b.block) && !within(a.block, b.except) && !within(b.block, a.except)
	case a.namespaces != nil && b.block.IsValid():
		return v.mayHold(b)
	case b.namespaces != nil && a.block.IsValid():
		return v.mayHold(a)
	}
	return false
}

func (v *view) overlapNamespaces(a, b *metav1.LabelSelector) bool {
	if disjoint(a, b) {
		return false
	}
	for _, pair := range [][2]*metav1.LabelSelector{{a, b}, {b, a}} {
		if named := names(pair[0]); len(named) > 0 {
			return slices.ContainsFunc(named, func(name string) bool {
				_, known := v.in.Namespaces[name]
				return !known && !v.in.Whole || matches(pair[1], v.labelsOf(name))
			})
		}
	}
	if !v.in.Whole {
		return true
	}
	for name := range v.in.Namespaces {
		if set := v.labelsOf(name); matches(a, set) && matches(b, set) {
			return true
		}
	}
	return false
}

// within reports whether a block is all in one of the others.
func within(block netip.Prefix, others []netip.Prefix) bool {
	return slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.IsValid() && o.Bits() <= block.Bits() && o.Contains(block.Addr()) })
}

// mayHold reports whether a block of addresses may have pods.
func (v *view) mayHold(p peer) bool {
	if !p.block.IsValid() {
		return false
	}
	if v.in.Mesh.Networks == nil {
		return true
	}
	return slices.ContainsFunc(v.in.Mesh.Networks, func(n netip.Prefix) bool { return p.block.Overlaps(n) && !within(n, p.except) })
}

// mayJoin reports whether some of the peer are or may come to be in the mesh: pods of namespaces that are not labelled yet
// count, because they would be cut in the moment in which they join.
func (v *view) mayJoin(p peer) bool {
	if p.namespaces == nil {
		return v.mayHold(p)
	}
	excluded := func(name string) bool { return slices.Contains(v.in.Mesh.Enrolment.Exclude, name) }
	if named := names(p.namespaces); len(named) > 0 {
		return slices.ContainsFunc(named, func(name string) bool { return !excluded(name) })
	}
	if !v.in.Whole {
		return true
	}
	found := false
	for name := range v.in.Namespaces {
		if !matches(p.namespaces, v.labelsOf(name)) {
			continue
		}
		if !excluded(name) {
			return true
		}
		found = true
	}
	return !found // a namespace that does not exist may be made
}

// text says who the peer is.
func (p peer) text() string {
	switch {
	case p.block.IsValid():
		out := p.block.String()
		if len(p.except) > 0 {
			var holes []string
			for _, e := range p.except {
				holes = append(holes, e.String())
			}
			out += " except " + strings.Join(holes, ",")
		}
		return out
	case p.namespaces == nil:
		return "others"
	}
	pods, namespaces := describe(p.pods), describe(p.namespaces)
	out := "all pods"
	if pods != "" {
		out = "pods " + pods
	}
	if namespaces == "" {
		return out + " of all namespaces"
	}
	if name, only := strings.CutPrefix(namespaces, nameLabel+"="); only && !strings.Contains(name, ",") {
		return out + " of namespace " + name
	}
	return out + " of namespaces " + namespaces
}
