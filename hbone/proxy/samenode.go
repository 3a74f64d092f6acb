package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
	"github.com/culvert-mesh/culvert/workload/route"
)

// podName is what a pod and its workload have in common.
type podName struct{ namespace, name, serviceAccount string }

func (p *Pod) name() podName {
	return podName{p.cfg.Namespace, p.cfg.Name, p.cfg.ServiceAccount}
}

// neighbour is a pod of this agent in which a target ends.
type neighbour struct {
	*Pod
	local *localState
}

// neighbour finds the pod whose workload the target is, and only that: an address may have changed hands. Nothing is found
// for a target whose bytes go elsewhere first, or that speaks HBONE itself, or that takes no connections any more.
//
// Nothing is found either for a connection from an address that is not its pod's. The application chooses that address, and
// the destination and its policies would be told it; a tunnel comes from the pod's own, whatever the application says.
func (o *outbound) neighbour(t *route.Target) (n neighbour, ok bool) {
	p, w := o.pod.proxy, t.Workload
	if !p.cfg.SameNode || t.Protocol != route.ProtocolHBONE || t.Waypoint || w == nil || w.NativeTunnel || !w.HasAddress(t.Dial.Addr()) {
		return n, false
	}
	if !o.local.workload.HasAddress(o.Source.Addr.Addr()) {
		return n, false
	}
	if asked, err := netip.ParseAddrPort(t.Authority); err != nil || asked.Addr() != t.Dial.Addr() {
		return n, false
	}
	found, ok := p.named.Load(podName{w.Namespace, w.Name, w.ServiceAccount})
	if !ok {
		return n, false
	}
	n.Pod = found.(*Pod)
	n.local = n.localNow()
	if n.local == nil || n.local.workload.UID != w.UID || n.local.workload.ApplicationTunnel != nil || n.cfg.Inbound == nil {
		return n, false
	}
	select {
	case <-n.stopping:
		return n, false
	default:
		return n, true
	}
}

// hold counts something of another pod's making in Pod.work, unless the pod takes nothing new any more.
func (p *Pod) hold() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.draining {
		p.work.Add(1)
	}
	return !p.draining
}

// otherSide is the other pod's reason to end a connection, as this one hears of it: the other's flow answers for it.
type otherSide struct{ err error }

// Error implements error.
func (e *otherSide) Error() string { return "ended by the other side: " + e.err.Error() }

// credentials are what both sides of a connection would have shown in a handshake.
type credentials struct{ source, destination *svid.SVID }

// check reports who of the two has been revoked since.
func (c *credentials) check(rev *mtls.Revocation) (source, destination error) {
	return rev.Check(c.source.Certificates, c.destination.Bundle), rev.Check(c.destination.Certificates, c.source.Bundle)
}

// introduce does what a handshake between the pods would: each side's certificate is had, and judged by the other with
// the very functions that a handshake calls. An error is the source's; the destination's is reported here.
func (o *outbound) introduce(ctx context.Context, dest neighbour, t *route.Target) (*credentials, error) {
	cfg := &o.pod.proxy.cfg
	source, err := cfg.Certificates.Get(ctx, o.local.id)
	if err != nil {
		return nil, &IdentityError{o.local.id, err}
	}
	hctx, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout)
	defer cancel()
	destination, err := cfg.Certificates.Get(hctx, dest.local.id)
	if err != nil {
		err = &IdentityError{dest.local.id, err}
		dest.refuse(o.Source.Addr, t.Dial, err)
		return nil, fmt.Errorf("%s: %w", t.Dial, &tunnel.HandshakeError{Err: &otherSide{err}})
	}
	shown := tls.ConnectionState{PeerCertificates: destination.Certificates}
	if err := mtls.Client(source, t.Expected, cfg.Revocation).VerifyConnection(shown); err != nil {
		return nil, fmt.Errorf("%s: %w", t.Dial, &tunnel.HandshakeError{Err: err})
	}
	shown.PeerCertificates = source.Certificates
	if err := mtls.Server(destination, cfg.Revocation).VerifyConnection(shown); err != nil {
		err = &tunnel.HandshakeError{Err: err}
		dest.refuse(o.Source.Addr, t.Dial, err)
		return nil, fmt.Errorf("%s: %w", t.Dial, &tunnel.HandshakeError{Err: &otherSide{err}})
	}
	return &credentials{source, destination}, nil
}
