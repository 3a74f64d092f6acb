package xds

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/workloadapi"

	"github.com/culvert-mesh/culvert/workload"
)

// applyAddresses takes a response of the address type: what converts is applied in
// one step, what does not is reported and leaves its predecessor in place.
func (c *Client) applyAddresses(s *subscription, r response) []rejection {
	var rejected []rejection
	events := make([]workload.Event, 0, len(r.GetResources())+len(r.GetRemovedResources()))
	for _, res := range r.GetResources() {
		event, key, err := c.address(res)
		if err != nil {
			rejected = append(rejected, rejection{name: res.GetName(), err: err})
			continue
		}
		s.named(res.GetName(), key)
		events = append(events, event)
	}
	for _, key := range s.removed(r) {
		events = append(events, workload.Removal(key))
	}
	c.cfg.Store.Apply(events)
	return rejected
}

// decode unpacks a resource. The type inside is not looked at, as in the
// reference: the response has said it.
func decode(res *discovery.Resource, into proto.Message) error {
	if res.GetResource() == nil {
		return errors.New("payload without resource")
	}
	if err := proto.Unmarshal(res.GetResource().GetValue(), into); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}

// address converts a resource of the address type and returns the key under which
// the Store holds it.
func (c *Client) address(res *discovery.Resource) (workload.Event, string, error) {
	var a workloadapi.Address
	if err := decode(res, &a); err != nil {
		return workload.Event{}, "", err
	}
	switch a := a.GetType().(type) {
	case *workloadapi.Address_Workload:
		w, err := toWorkload(a.Workload)
		if err != nil {
			return workload.Event{}, "", err
		}
		if w.UID == res.GetName() {
			w.UID = res.GetName() // one string for the Store and for our record of versions
		}
		return workload.Upsert(w), w.UID, nil
	case *workloadapi.Address_Service:
		svc, bad, err := toService(a.Service)
		if err != nil {
			return workload.Event{}, "", err
		}
		for _, san := range bad {
			c.cfg.Logger.Warn("subject alternative name of a service ignored", "service", svc.Key(), "name", san)
		}
		if svc.SessionAffinity, err = toAffinity(a.Service.GetExtensions()); err != nil {
			c.cfg.Logger.Warn("session affinity of a service ignored", "service", svc.Key(), "error", err)
		}
		if svc.ExportTo, err = toExport(a.Service.GetExtensions()); err != nil {
			c.cfg.Logger.Warn("namespaces that may see a service ignored", "service", svc.Key(), "error", err)
		}
		return workload.UpsertService(svc), svc.Key().String(), nil
	default:
		return workload.Event{}, "", errors.New("address is neither workload nor service")
	}
}

// toAddr reads an address of 4 or 16 octets.
func toAddr(b []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address of %d octets", len(b))
	}
	return addr, nil
}

// toPrefix makes a prefix; one of IPv4-mapped addresses becomes one of IPv4.
func toPrefix(addr netip.Addr, bits uint32) (netip.Prefix, error) {
	if bits > uint32(addr.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix length %d of %s", bits, addr)
	}
	if addr.Is4In6() && bits >= 96 {
		addr, bits = addr.Unmap(), bits-96
	}
	return netip.PrefixFrom(addr, int(bits)).Masked(), nil
}

// toGateway converts the address of a waypoint or gateway; nil stays nil.
func toGateway(g *workloadapi.GatewayAddress) (*workload.GatewayAddress, error) {
	if g == nil {
		return nil, nil
	}
	out := &workload.GatewayAddress{HBONEPort: uint16(g.GetHboneMtlsPort())} // cut to 16 bits, as in the reference
	switch d := g.GetDestination().(type) {
	case *workloadapi.GatewayAddress_Hostname:
		out.Hostname = workload.NamespacedHostname{Namespace: d.Hostname.GetNamespace(), Hostname: d.Hostname.GetHostname()}
	case *workloadapi.GatewayAddress_Address:
		addr, err := toAddr(d.Address.GetAddress())
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		out.Address = workload.NewNetworkAddress(d.Address.GetNetwork(), addr)
	default:
		return nil, errors.New("gateway without destination")
	}
	return out, nil
}

// toPorts converts a list of ports; of a service port given twice the last counts.
func toPorts(ports []*workloadapi.Port) (workload.PortMap, error) {
	out := make(workload.PortMap, len(ports))
	for _, p := range ports {
		if p.GetServicePort() > math.MaxUint16 || p.GetTargetPort() > math.MaxUint16 {
			return nil, fmt.Errorf("port %d with target %d", p.GetServicePort(), p.GetTargetPort())
		}
		out[uint16(p.GetServicePort())] = uint16(p.GetTargetPort())
	}
	return out, nil
}

// enum looks a wire value up among the values that stand for 0, 1 and so on;
// others reject the resource.
func enum[W ~int32, T any](what string, v W, values ...T) (T, error) {
	if v < 0 || int(v) >= len(values) {
		var none T
		return none, fmt.Errorf("unknown %s %d", what, v)
	}
	return values[v], nil
}

// lowerName returns the lower-case name of a workload type; unknown ones are the
// default, as in the reference.
func lowerName(t workloadapi.WorkloadType) string {
	if name, ok := workloadapi.WorkloadType_name[int32(t)]; ok {
		return strings.ToLower(name)
	}
	return strings.ToLower(workloadapi.WorkloadType_DEPLOYMENT.String())
}
