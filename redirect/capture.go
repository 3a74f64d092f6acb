package redirect

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// What is agreed between the capture rules and whoever serves the captured traffic.
const (
	AgentMark  = nft.AgentMark  // SO_MARK of every socket of the agent
	ReturnMark = nft.ReturnMark // mark of packets that are routed back to the agent
	MarkMask   = nft.MarkMask   // our part of both

	PortOutbound = nft.PortOutbound
	PortInbound  = nft.PortInbound
	PortHBONE    = nft.PortHBONE
	PortDNS      = nft.PortDNS

	// RouteTable is the table of the policy routing. Its number says "CULV": small ones
	// belong to distributions, CNI plugins (sbr counts up from 100) and VPNs.
	RouteTable = 0x43554c56
	// RulePriority is that of the rule, unless an application has rules as early: then
	// it is before these. Others say 220 (strongSwan), 1000 (VRFs), 5210 (Tailscale).
	RulePriority = 200

	// FirstReservedPort to LastReservedPort are no ephemeral ports in an enrolled
	// namespace: an application's outgoing connection could otherwise have taken
	// the port of a listener.
	FirstReservedPort = 15000
	LastReservedPort  = 15090

	// MaxAddresses is how long each of ProbeAddresses, NodeAddresses and HostAddresses
	// may be.
	MaxAddresses = nft.MaxAddresses

	// HalfCloseTimeout is how long a captured connection may be silent after one
	// side has closed.
	HalfCloseTimeout = 12 * time.Hour
)

// Options choose what is captured. The zero value captures TCP of both families in
// both directions.
type Options struct {
	// DNS captures UDP and TCP port 53 too.
	DNS bool
	// NoIPv6 leaves IPv6 alone. Then it passes unseen; leave it false unless the
	// namespace must not be touched there.
	NoIPv6 bool
	// Ingress leaves inbound connections alone (a gateway).
	Ingress bool
	// Probes exempts the addresses that istio-cni gives to the kubelet's probes.
	// Only where istio-cni captures on the host.
	Probes bool
	// VirtualInterfaces are interfaces of machines nested in the pod.
	VirtualInterfaces []string
	// ExcludeInbound and ExcludeOutbound are TCP ports that are not captured.
	// ExcludeInbound is without effect beside IncludeInbound, as in Istio.
	ExcludeInbound, ExcludeOutbound []uint16
	// IncludeInbound, when not empty, are the only TCP ports captured inbound. To
	// capture none at all is Ingress.
	IncludeInbound []uint16
	// NoOutbound leaves outbound connections alone, except DNS where that is
	// captured.
	NoOutbound bool
	// ExcludeOutboundRanges are destinations that are called directly, also those
	// inside IncludeOutboundRanges. A range must have no bits beyond its prefix.
	ExcludeOutboundRanges []netip.Prefix
	// IncludeOutboundRanges, when not empty, are the only destinations captured
	// outbound, of both families: ranges of one leave the other alone. To capture
	// none at all is NoOutbound.
	IncludeOutboundRanges []netip.Prefix
	// NodeAddresses are the addresses that processes in the node's own network may
	// call the pod from. Alone they open nothing.
	NodeAddresses []netip.Addr
	// ProbeMark lets the kubelet's connections reach the application directly, as
	// the host's rules mark them (package hostrules) and when they go from
	// NodeAddresses to ProbeAddresses. Without these rules on the host anybody who can
	// send from a node's address could set the mark, so then leave it false.
	ProbeMark bool
	// ProbeAddresses are the addresses of the pod that the host's rules have already.
	// The pod's others are guarded by nobody there.
	ProbeAddresses []netip.Addr
	// HostPorts are ports that connections from NodeAddresses and HostAddresses
	// reach directly, of whichever process: API server, hostNetwork pods, NodePort
	// traffic that a node forwards under its own address.
	HostPorts []uint16
	// HostAddresses are further addresses for HostPorts: other nodes, API servers.
	HostAddresses []netip.Addr
}

// Validate reports all faults of the options.
func (o Options) Validate() error { return o.nft(false).Validate() }

func (o Options) nft(draining bool) nft.Options {
	return nft.Options{
		DNS: o.DNS, IPv6: !o.NoIPv6, Ingress: o.Ingress, Probes: o.Probes,
		VirtualInterfaces: o.VirtualInterfaces,
		ExcludeInbound:    o.ExcludeInbound, IncludeInbound: o.IncludeInbound,
		NoOutbound: o.NoOutbound, ExcludeOutbound: o.ExcludeOutbound,
		ExcludeOutboundRanges: o.ExcludeOutboundRanges, IncludeOutboundRanges: o.IncludeOutboundRanges,
		NodeAddresses: o.NodeAddresses, ProbeMark: o.ProbeMark, ProbeAddresses: o.ProbeAddresses,
		HostPorts: o.HostPorts, HostAddresses: o.HostAddresses,
		Draining: draining,
	}
}

// Part is the part of a capture that a Finding is about.
type Part string

// The parts of a capture.
const (
	PartRules    Part = "nftables"
	PartRule     Part = "policy rule"
	PartRoute    Part = "route"
	PartSysctl   Part = "sysctl"
	PartLoopback Part = "loopback"
)

// Finding is one difference between what should be and what is.
type Finding struct {
	Part Part
	Text string // in words, with the names of things
}

// String returns "part: text".
func (f Finding) String() string { return string(f.Part) + ": " + f.Text }

// Capture is the desired capture of one namespace. It does not own the namespace.
type Capture struct {
	ns *netns.NS
	o  atomic.Pointer[Options]

	// clean is what was found to be right last, so that looking again costs one
	// message; nil when nothing was.
	clean atomic.Pointer[verified]
}

// verified says that the rules of a generation of nftables are those of o.
type verified struct {
	generation uint32
	o          *Options
}

// New returns the capture of ns. Nothing is changed yet; faulty options are
// refused.
func New(ns *netns.NS, o Options) (*Capture, error) {
	if ns == nil {
		return nil, errors.New("capture traffic: no network namespace")
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("capture traffic in %s: %w", ns, err)
	}
	c := &Capture{ns: ns}
	c.o.Store(&o)
	return c, nil
}

// Change sets other options; faulty ones are refused and change nothing. The next
// Apply or Repair puts them into effect, for new connections only: established ones
// stay as they are, direct or captured. NoIPv6 must stay as it was. It may be called
// at any time, also during another call.
func (c *Capture) Change(o Options) error {
	err := o.Validate()
	if err == nil && o.NoIPv6 != c.o.Load().NoIPv6 {
		err = errors.New("IPv6 cannot be switched on or off")
	}
	if err != nil {
		return fmt.Errorf("change capture of %s: %w", c.ns, err)
	}
	c.o.Store(&o)
	return nil
}

// Reserve keeps the agent's ports from being given to applications as ephemeral
// ones. Call it before opening listeners. An error is no reason to give up: it names
// what may go wrong, which is rare.
func (c *Capture) Reserve() error {
	saved, err := c.saved()
	if err != nil {
		return fmt.Errorf("reserve ports in %s: %w", c.ns, err)
	}
	before := maps.Clone(saved)
	err = c.ns.Do(func() error { return rememberPorts(saved) })
	if err != nil {
		return fmt.Errorf("reserve ports in %s: %w", c.ns, err)
	}
	if !maps.Equal(before, saved) { // the first time here: there is no capture yet
		t, err := nft.SavedOnly(saved)
		if err == nil {
			err = t.Apply(c.ns)
		}
		if err != nil {
			return fmt.Errorf("reserve ports in %s: %w", c.ns, err)
		}
	}
	if err := c.ns.Do(reservePorts); err != nil {
		return fmt.Errorf("reserve ports in %s: %w", c.ns, err)
	}
	return nil
}

// Apply makes the kernel capture, whatever was there of it before, and also after
// StopNew. Connections that exist are left alone: old ones stay direct, captured
// ones stay captured. Routing comes first and rules last in one transaction, so a
// failed Apply captures nothing.
//
// The findings are what could not be made right although traffic is captured: sysctls
// that may not be written, policy rules of others that come before all.
func (c *Capture) Apply() ([]Finding, error) {
	saved, err := c.saved()
	if err != nil {
		return nil, fmt.Errorf("capture traffic in %s: %w", c.ns, err)
	}
	var left []Finding
	err = c.ns.Do(func() error {
		left = append(left, failed(rememberPorts(saved), reservePorts)...)
		ipv6 := !c.o.Load().NoIPv6
		if err := addRouting(ipv6); err != nil {
			return err
		}
		routing, err := routingLeft(ipv6)
		left = append(left, routing...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture traffic in %s: %w", c.ns, err)
	}
	if err := c.applyRules(false, saved); err != nil {
		return nil, fmt.Errorf("capture traffic in %s: %w", c.ns, err)
	}
	// The rules have loaded connection tracking, so its sysctls are there now.
	before := maps.Clone(saved)
	if err := c.ns.Do(func() error { return rememberKnobs(saved) }); err != nil {
		return append(left, Finding{PartSysctl, err.Error()}), nil
	}
	if !maps.Equal(before, saved) {
		if err := c.applyRules(false, saved); err != nil {
			return nil, fmt.Errorf("capture traffic in %s: %w", c.ns, err)
		}
	}
	if err := c.ns.Do(raiseKnobs); err != nil {
		left = append(left, Finding{PartSysctl, err.Error()})
	}
	return left, nil
}

func failed(err error, then func() error) []Finding {
	if err == nil {
		err = then()
	}
	if err == nil {
		return nil
	}
	return []Finding{{PartSysctl, err.Error()}}
}

// Verify compares the kernel with what Apply makes and returns the differences,
// none when all is well.
func (c *Capture) Verify() ([]Finding, error) { return c.verify(false) }

// VerifyDraining is Verify for the time between StopNew and Delete.
func (c *Capture) VerifyDraining() ([]Finding, error) { return c.verify(true) }

func (c *Capture) verify(draining bool) ([]Finding, error) {
	found, err := c.verifyRules(draining)
	if err != nil {
		return nil, fmt.Errorf("verify capture in %s: %w", c.ns, err)
	}
	err = c.ns.Do(func() error {
		routing, err := verifyRouting(!c.o.Load().NoIPv6)
		found = append(found, routing...)
		found = append(found, verifySysctls()...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("verify capture in %s: %w", c.ns, err)
	}
	return found, nil
}

func (c *Capture) verifyRules(draining bool) ([]Finding, error) {
	o := c.o.Load()
	generation, err := nft.Generation(c.ns)
	if err != nil {
		return nil, err
	}
	if last := c.clean.Load(); !draining && last != nil && *last == (verified{generation, o}) {
		return nil, nil
	}
	have, err := nft.Read(c.ns)
	if err != nil {
		return nil, err
	}
	want, err := nft.Desired(o.nft(draining), have.Saved())
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, text := range nft.Diff(want, have) {
		found = append(found, Finding{PartRules, text})
	}
	if !draining && len(found) == 0 {
		c.clean.Store(&verified{generation, o}) // read before the rules, so later changes are seen
	}
	return found, nil
}

// Repair verifies and, when something differs, applies. It returns what it found
// and what of it is left.
func (c *Capture) Repair() (found, left []Finding, err error) {
	if found, err = c.Verify(); err != nil || len(found) == 0 {
		return found, nil, err
	}
	if left, err = c.Apply(); err != nil {
		return found, found, err
	}
	return found, left, nil
}

// StopNew stops capturing new connections; those that are captured go on. It is the
// first step of leaving. Where nothing is captured it does nothing.
func (c *Capture) StopNew() error {
	have, err := nft.Read(c.ns)
	if err == nil && have != nil {
		err = c.applyRules(true, have.Saved())
	}
	if err != nil {
		return fmt.Errorf("stop capturing in %s: %w", c.ns, err)
	}
	return nil
}

// Delete removes everything and restores the sysctls. Captured connections that are
// still there stall; StopNew and patience come first. It goes on after an error and
// returns all of them; deleting what is not there is none.
func (c *Capture) Delete() error {
	saved, err := c.saved()
	if err != nil {
		return fmt.Errorf("delete capture in %s: %w", c.ns, err)
	}
	err = errors.Join(
		nft.Delete(c.ns),
		c.ns.Do(func() error { return errors.Join(deleteRouting(), restoreSysctls(saved)) }),
	)
	if err != nil {
		return fmt.Errorf("delete capture in %s: %w", c.ns, err)
	}
	return nil
}

// Present reports whether the kernel has rules of the mesh, whatever they are.
func (c *Capture) Present() (bool, error) {
	t, err := nft.Read(c.ns)
	return t != nil, err
}

// Text returns the rules that the kernel has, as canonical text, for people to read.
func (c *Capture) Text() (string, error) {
	t, err := nft.Read(c.ns)
	return t.Text(), err
}

// saved reads what an earlier Reserve or Apply has remembered.
func (c *Capture) saved() (map[string]string, error) {
	t, err := nft.Read(c.ns)
	if err != nil {
		return nil, err
	}
	return t.Saved(), nil
}

func (c *Capture) applyRules(draining bool, saved map[string]string) error {
	t, err := nft.Desired(c.o.Load().nft(draining), saved)
	if err != nil {
		return err
	}
	return t.Apply(c.ns)
}
