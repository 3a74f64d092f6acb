package netpol_test

import (
	"net/netip"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

func pod(uid, namespace string, labels map[string]string, ports ...netpol.NamedPort) *netpol.Pod {
	return &netpol.Pod{UID: uid, Namespace: namespace, Labels: netpol.MakeLabels(labels), Ports: ports}
}

// is selects by matchLabels: pairs of key and value.
func is(pairs ...string) netpol.Selector {
	var s netpol.Selector
	for i := 0; i < len(pairs); i += 2 {
		s.Requirements = append(s.Requirements, require(pairs[i], netpol.In, pairs[i+1]))
	}
	return s
}

func require(key string, op netpol.Op, values ...string) netpol.Requirement {
	return netpol.Requirement{Key: key, Op: op, Values: values}
}

func ptr(s netpol.Selector) *netpol.Selector { return &s }

func block(cidr string, except ...string) netpol.Peer {
	p := netpol.Peer{Block: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		p.Except = append(p.Except, netip.MustParsePrefix(e))
	}
	return p
}
