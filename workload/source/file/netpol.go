package file

import (
	"encoding/json"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
)

// networkPolicy reads one object. It is strict: a policy of which a part cannot be
// understood is a fault.
func (d *decoder) networkPolicy(n *yaml.Node) {
	const what = "network policy object"
	n = d.resolve(n)
	var value map[string]any
	if err := n.Decode(&value); err != nil {
		d.fault(n, "%s: %v", what, err)
		return
	}
	text, err := json.Marshal(value)
	if err != nil {
		d.fault(n, "%s: %v", what, err)
		return
	}
	o, err := wire.DecodeJSON(text)
	if err != nil {
		d.fault(n, "%s: %v", what, err)
		return
	}
	d.once(n, what, o.Key().String())
	d.state.NetworkPolicies = append(d.state.NetworkPolicies, o)
}

func encodeNetworkPolicy(o netpol.Object) (map[string]any, error) {
	text, err := wire.EncodeJSON(o)
	if err != nil {
		return nil, err
	}
	var value map[string]any
	if err := json.Unmarshal(text, &value); err != nil {
		return nil, err
	}
	return value, nil
}
