package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/culvert-mesh/culvert/redirect/handoff"
)

// maxArgs bounds CNI_ARGS in bytes.
const maxArgs = 64 << 10

// errNoPrevResult says that the plugin is the first of its chain.
var errNoPrevResult = errors.New("no prevResult: " + Type + " has to be chained after the plugin that makes the network")

// podOf reads CNI_ARGS, "KEY=VALUE;…", as runtimes of Kubernetes set it. It is false
// where there is no pod. Keys of others are none of our business.
func podOf(args string) (handoff.CNIPod, bool, error) {
	if len(args) > maxArgs {
		return handoff.CNIPod{}, false, fmt.Errorf("CNI_ARGS is longer than %d bytes", maxArgs)
	}
	var p handoff.CNIPod
	places := map[string]*string{
		"K8S_POD_NAMESPACE": &p.Namespace, "K8S_POD_NAME": &p.Name, "K8S_POD_UID": &p.UID,
	}
	for pair := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		place := places[key]
		if place == nil {
			continue
		}
		if *place != "" && *place != value { // which of them would the other plugins believe?
			return handoff.CNIPod{}, false, fmt.Errorf("CNI_ARGS has two values of %s", key)
		}
		*place = value
	}
	if p.Namespace == "" && p.Name == "" {
		return handoff.CNIPod{}, false, nil
	}
	if err := p.Validate(); err != nil {
		return handoff.CNIPod{}, false, fmt.Errorf("CNI_ARGS: %w", err)
	}
	return p, true, nil
}

// addressesOf returns the addresses that the plugins before gave the pod: those of
// interfaces inside of its namespace, and those of which the result does not say
// where they are.
func addressesOf(in input) ([]netip.Addr, error) {
	if len(in.PrevResult) == 0 {
		return nil, errNoPrevResult
	}
	conf := types.PluginConf{CNIVersion: in.CNIVersion}
	if err := json.Unmarshal(in.PrevResult, &conf.RawPrevResult); err != nil {
		return nil, fmt.Errorf("parse prevResult: %w", err)
	}
	if err := version.ParsePrevResult(&conf); err != nil { // knows that old results do not say their version
		return nil, fmt.Errorf("parse prevResult: %w", err)
	}
	result, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("parse prevResult: %w", err)
	}
	var addrs []netip.Addr
	for _, ip := range result.IPs {
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(result.Interfaces) && result.Interfaces[*n].Sandbox == "" {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("prevResult has an address that is none: %.60q", ip.Address.String())
		}
		addrs = append(addrs, a.Unmap())
	}
	return addrs, handoff.CNIPod{Namespace: "-", Name: "-", Addresses: addrs}.Validate()
}

// ownPod reports whether the pod is one of the mesh itself, which must start without
// it: of the DaemonSet culvert-node or the Deployment culvert-controller in the mesh's
// own namespace. Their labels say the same to the agent, but the plugin must not need
// the API server for that.
func ownPod(p handoff.CNIPod, namespace string) bool {
	return p.Namespace == namespace &&
		(generated(p.Name, "culvert-node", 1) || generated(p.Name, "culvert-controller", 2))
}

// generated reports whether name is base and as many generated parts, "-x7k2p": five
// letters or digits at the end, up to ten before (a Deployment's template hash).
func generated(name, base string, parts int) bool {
	rest, ok := strings.CutPrefix(name, base+"-")
	if !ok {
		return false
	}
	got := strings.Split(rest, "-")
	if len(got) != parts || len(got[parts-1]) != 5 {
		return false
	}
	for _, part := range got {
		if part == "" || len(part) > 10 || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return false
		}
	}
	return true
}
