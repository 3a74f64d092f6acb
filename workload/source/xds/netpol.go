package xds

import (
	"errors"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
)

// applyNetworkPolicies takes a response of the network policy type, in one step:
// labels and the policies that select by them belong together. What cannot be read
// takes nothing else with it, and nobody is let in by it: in the place of a policy
// stands one that allows nothing, and of a pod or namespace nothing is known, which
// refuses connections with it.
func (c *Client) applyNetworkPolicies(s *subscription, r response) []rejection {
	var rejected []rejection
	var removals []netpol.Key
	upserts := make([]netpol.Object, 0, len(r.GetResources()))
	for _, res := range r.GetResources() {
		o, err := decodeNetworkPolicy(res.GetName(), res.GetResource().GetValue(), res.GetResource() != nil)
		if err != nil {
			rejected = append(rejected, rejection{name: res.GetName(), err: err, held: o != nil})
			delete(s.versions, res.GetName()) // its predecessor goes too, so it is not held in any version
			c.cfg.Logger.Error("part of the network policies cannot be read", "resource", res.GetName(), "error", err)
		}
		switch p, isPolicy := o.(*netpol.Policy); {
		case o == nil:
			if key, err := wire.ParseName(res.GetName()); err == nil {
				removals = append(removals, key)
			}
			continue
		case isPolicy:
			if err := p.Validate(); err != nil {
				c.cfg.Logger.Warn("network policy allows less than it says, because a part of it cannot be understood",
					"policy", p.Key().String(), "reason", err)
			}
		}
		upserts = append(upserts, o)
	}
	for _, name := range s.removed(r) {
		if key, err := wire.ParseName(name); err == nil {
			removals = append(removals, key)
		}
	}
	c.cfg.NetworkPolicies.Apply(upserts, removals)
	return rejected
}

func decodeNetworkPolicy(name string, value []byte, there bool) (netpol.Object, error) {
	if !there {
		o, _ := wire.Decode(name, nil)
		return o, errors.New("payload without resource")
	}
	return wire.Decode(name, value)
}
