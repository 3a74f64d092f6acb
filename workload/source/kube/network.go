package kube

import (
	"maps"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

// networkState is what network policies are made of.
//
// As long as there is no policy nothing of it is published. Then the pods and
// namespaces are, and nodes if a policy names nodes, with those labels alone that
// some policy selects by, and of the named ports those that some policy names.
type networkState struct {
	policies table[*networkObject] // both kinds; those of the cluster have no namespace
	words    vocabulary
	changed  map[ref]struct{}             // policies
	labels   map[pairs]netpol.Labels      // by what is left of an object's labels
	ports    map[pairs][]netpol.NamedPort // by all that a pod names
}

func newNetworkState() *networkState {
	return &networkState{
		policies: make(table[*networkObject]), changed: make(map[ref]struct{}),
		labels: make(map[pairs]netpol.Labels), ports: make(map[pairs][]netpol.NamedPort),
	}
}

// vocabulary is what policies select by.
type vocabulary struct {
	any, nodes bool            // there are policies; some name nodes
	labels     map[string]bool // keys, of whatever kind of object
	ports      map[string]bool
}

// vocabularyOf returns what the policies select by.
func vocabularyOf(policies table[*networkObject]) vocabulary {
	v := vocabulary{labels: make(map[string]bool), ports: make(map[string]bool)}
	for o := range policies.in("") {
		p := o.policy
		v.any = true
		v.take(p.Namespaces, &p.Pods)
		for _, rules := range [][]netpol.Rule{p.IngressRules, p.EgressRules} {
			for i := range rules {
				for j := range rules[i].Peers {
					peer := &rules[i].Peers[j]
					v.take(peer.Namespaces, peer.Pods, peer.Nodes)
					v.nodes = v.nodes || peer.Nodes != nil
				}
				for _, port := range rules[i].Ports {
					if port.Name != "" {
						v.ports[port.Name] = true
					}
				}
			}
		}
	}
	return v
}

func (v *vocabulary) take(selectors ...*netpol.Selector) {
	for _, s := range selectors {
		if s == nil {
			continue
		}
		for i := range s.Requirements {
			v.labels[s.Requirements[i].Key] = true
		}
	}
}

func (v *vocabulary) equal(o *vocabulary) bool {
	return v.any == o.any && v.nodes == o.nodes && maps.Equal(v.labels, o.labels) && maps.Equal(v.ports, o.ports)
}

// setNetworkPolicy takes a policy of either kind.
func (st *state) setNetworkPolicy(r ref, _, next *networkObject) {
	if next == nil {
		st.network.policies.drop(r.key)
		st.fault(r, "")
	} else {
		st.network.policies.put(r.key, next)
		st.fault(r, next.fault())
	}
	st.network.changed[r] = struct{}{}
}

// flushNetwork publishes what network policies are made of: what is dirty, or all
// of it when policies select by something else than before.
func (st *state) flushNetwork(b *batch) {
	n := st.network
	if len(n.changed) > 0 {
		words := vocabularyOf(n.policies)
		same := words.equal(&n.words)
		for r := range n.changed {
			st.emitNetworkPolicy(r, b)
		}
		clear(n.changed)
		if !same {
			n.words = words
			clear(n.labels)
			clear(n.ports)
			st.flushAllNetwork(b)
			return
		}
	}
	if n.words.any {
		st.flushDirtyNetwork(b)
	}
}

func (st *state) flushDirtyNetwork(b *batch) {
	for r := range st.dirty {
		switch r.kind {
		case kindPod:
			st.emitNetworkPod(r.key, b)
		case kindNamespace:
			st.emitNetworkNamespace(r.name, b)
		case kindNode:
			st.emitNetworkNode(r.name, b)
		}
	}
}

func (st *state) flushAllNetwork(b *batch) {
	st.flushDirtyNetwork(b) // what is gone is in no table any more
	for p := range st.pods.byKey.in("") {
		st.emitNetworkPod(p.key, b)
	}
	for name := range st.namespaces {
		st.emitNetworkNamespace(name, b)
	}
	for name := range st.nodes {
		st.emitNetworkNode(name, b)
	}
}

func (st *state) emitNetworkPolicy(r ref, b *batch) {
	if o := st.network.policies.get(r.key); o != nil {
		b.networks = append(b.networks, o.policy)
		return
	}
	b.networkRemovals = append(b.networkRemovals, netpol.Key{Kind: netpol.KindPolicy, Namespace: r.namespace, Name: r.name})
}

func (st *state) emitNetworkPod(k key, b *batch) {
	p := st.pods.byKey.get(k)
	if !st.network.words.any || p == nil || p.terminal || p.hostNetwork || len(p.ips) == 0 {
		b.networkRemovals = append(b.networkRemovals, netpol.Key{Kind: netpol.KindPod, Name: st.podUID(k)})
		return
	}
	b.networks = append(b.networks, &netpol.Pod{
		UID: st.podUID(k), Namespace: p.namespace, Labels: st.network.trim(p.labels), Ports: st.network.trimPorts(p.ports),
	})
}

func (st *state) emitNetworkNamespace(name string, b *batch) {
	ns := st.namespaces[name]
	if !st.network.words.any || ns == nil {
		b.networkRemovals = append(b.networkRemovals, netpol.Key{Kind: netpol.KindNamespace, Name: name})
		return
	}
	b.networks = append(b.networks, &netpol.Namespace{Name: name, Labels: st.network.trim(ns.labels)})
}

func (st *state) emitNetworkNode(name string, b *batch) {
	n := st.nodes[name]
	if !st.network.words.nodes || n == nil {
		b.networkRemovals = append(b.networkRemovals, netpol.Key{Kind: netpol.KindNode, Name: name})
		return
	}
	b.networks = append(b.networks, &netpol.Node{Name: name, Labels: st.network.trim(n.labels), Addresses: n.addresses})
}

// mostTrimmed bounds how many sets of labels, or of ports, are remembered.
const mostTrimmed = 1 << 16

// trim returns the labels that policies select by. Objects that are alike in them
// get the same ones.
func (n *networkState) trim(labels pairs) netpol.Labels {
	kept := make(map[string]string)
	for k, v := range labels.all() {
		if n.words.labels[k] {
			kept[k] = v
		}
	}
	same := makePairs(kept)
	out, ok := n.labels[same]
	if !ok {
		if len(n.labels) >= mostTrimmed {
			clear(n.labels)
		}
		out = netpol.MakeLabels(kept)
		n.labels[same] = out
	}
	return out
}

// trimPorts returns the ports that policies name.
func (n *networkState) trimPorts(ports pairs) []netpol.NamedPort {
	if ports.empty() || len(n.words.ports) == 0 {
		return nil
	}
	if out, ok := n.ports[ports]; ok {
		return out
	}
	var out []netpol.NamedPort
	for name, text := range ports.all() {
		port, err := parsePort(text)
		if err == nil && n.words.ports[name] {
			out = append(out, netpol.NamedPort{Name: name, Port: port})
		}
	}
	if len(n.ports) >= mostTrimmed {
		clear(n.ports)
	}
	n.ports[ports] = out
	return out
}
