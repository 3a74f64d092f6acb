package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
)

// networkPatience is how long a discovery server may take to tell of network policies before that is said.
const networkPatience = 30 * time.Second

// networkState says in words who evaluates network policies.
func (n *node) networkState() string {
	switch {
	case n.networks != nil:
		return "evaluated"
	case n.settings.networkPol == networkNone:
		return "none, by the word of --network-policies=none"
	default:
		return "not evaluated: left to the CNI (--network-policies)"
	}
}

// followNetworks says when the discovery server does not tell of network policies: it may be one that has none to tell. A
// server that knows nothing of them is a reason of its own for not being ready.
func (n *node) followNetworks(ctx context.Context) error {
	if n.networks == nil {
		return nil
	}
	look := time.NewTicker(networkPatience)
	defer look.Stop()
	for said := false; ; {
		snap := n.networks.Snapshot()
		if snap.Ready() {
			n.ready.Clear(waitNetworks)
			n.scope("xds").Info("network policies are known", "policies", snap.Policies())
			return nil
		}
		select {
		case <-snap.Changed():
		case <-look.C:
			if n.lacksNetworks != nil && n.lacksNetworks() {
				n.ready.Block(waitNetworks)
			}
			if !said {
				n.scope("xds").Warn("the discovery server has not told of network policies, and nobody is let in without; a controller that is older than the agent, or has --network-policies=false, does not know them: upgrade it; istiod has none: --network-policies=false there")
			}
			said = true
		case <-ctx.Done():
			return nil
		}
	}
}

// ownNode reports whether an address is one of the node's, as far as that is known.
func (n *node) ownNode(addr netip.Addr) bool {
	return n.cluster != nil && n.cluster.host.owns(addr)
}

// dumpNetworks gives the state that network policies are evaluated by, ordered by kind, namespace and name.
func (n *node) dumpNetworks() (any, error) {
	out := struct {
		Evaluated bool              `json:"evaluated"`
		State     string            `json:"state"`
		Ready     bool              `json:"ready"`
		Version   uint64            `json:"version"`
		Objects   []json.RawMessage `json:"objects"`
		Faults    map[string]string `json:"faults,omitempty"`
	}{Evaluated: n.networks != nil, State: n.networkState(), Objects: []json.RawMessage{}}
	if n.networks == nil {
		return out, nil
	}
	snap := n.networks.Snapshot()
	out.Ready, out.Version = snap.Ready(), snap.Version()
	for _, o := range snap.Objects() {
		text, err := wire.EncodeJSON(o)
		if err != nil {
			return nil, err
		}
		out.Objects = append(out.Objects, text)
		if _, ok := o.(*netpol.Policy); !ok {
			continue
		}
		if err := snap.Fault(o.Key()); err != nil {
			if out.Faults == nil {
				out.Faults = make(map[string]string)
			}
			out.Faults[o.Key().String()] = err.Error()
		}
	}
	return out, nil
}
