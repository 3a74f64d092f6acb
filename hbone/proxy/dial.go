package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/pool"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/workload/route"
)

// trust is what a tunnel's peer was believed for: its identity, and the roots that vouched for it.
type trust struct {
	peer   identity.ID
	bundle *identity.Bundle
}

// check reports whether the chain of a live tunnel has been revoked since its handshake.
func (t *trust) check(rev *mtls.Revocation, tn *tunnel.Tunnel) error {
	return rev.Check(tn.Chain, t.bundle)
}

func peerID(t *tunnel.Tunnel) (identity.ID, error) {
	return mtls.PeerID(tls.ConnectionState{PeerCertificates: t.Chain})
}

// dialer returns how to make a tunnel to the target.
func (o *outbound) dialer(t *route.Target) pool.Dial {
	pod, source, target, budget := o.pod, o.local.id, *t, o.budget()
	return func(ctx context.Context, cfg tunnel.Config) (*tunnel.Tunnel, any, error) {
		return pod.dialTunnel(ctx, source, &target, budget, cfg)
	}
}

// dialTunnel makes a tunnel. budget is how long who asked for it can wait.
func (p *Pod) dialTunnel(ctx context.Context, source identity.ID, t *route.Target, budget time.Duration, cfg tunnel.Config) (*tunnel.Tunnel, any, error) {
	s, err := p.proxy.cfg.Certificates.Get(ctx, source)
	if err != nil {
		return nil, nil, &IdentityError{source, err}
	}
	fd, err := p.socket(loop.Family(t.Dial.Addr()))
	if err != nil {
		return nil, nil, err
	}
	loop.NoDelay(fd)
	// A little less than the budget, so that who waits hears why it failed.
	cctx, cancel := context.WithTimeoutCause(ctx, budget-budget/10, ErrConnectTimeout)
	defer cancel()
	fd, err = loop.Connect(cctx, fd, t.Dial)
	switch {
	case err != nil && timedOut(err):
		return nil, nil, &NetworkPolicyError{Port: t.Dial.Port(), Err: err}
	case err != nil:
		return nil, nil, fmt.Errorf("connect to %s: %w", t.Dial, err)
	}
	rev := p.proxy.cfg.Revocation
	hctx, cancel := context.WithTimeout(ctx, p.proxy.cfg.HandshakeTimeout)
	defer cancel()
	closed := cfg.OnClose
	cfg.OnClose = func(tn *tunnel.Tunnel, err error) {
		if atFault(err) {
			p.report(Outbound, Peer{Addr: tn.Local, ID: source}, Peer{Addr: tn.Remote}, err)
		}
		closed(tn, err)
	}
	cfg.PingInterval, cfg.PingTimeout = p.proxy.cfg.PingInterval, p.proxy.cfg.PingTimeout
	tn, err := tunnel.Client(hctx, fd, mtls.Client(s, t.Expected, rev), cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", t.Dial, err)
	}
	id, err := peerID(tn)
	if err != nil {
		tn.Post(func() { tn.Close(err) })
		return nil, nil, err
	}
	return tn, &trust{peer: id, bundle: s.Bundle}, nil
}

var errNoResolver = errors.New("workload has only a host name and nothing resolves it")

// resolve gives the current target, which has only a host name, an address, of the family that the application dialled
// if there is one. What else the name leads to is tried next, as far as there is room.
func (o *outbound) resolve(ctx context.Context) error {
	resolve, t := o.pod.proxy.cfg.Resolve, o.plan.Targets[o.at]
	if resolve == nil {
		return errNoResolver
	}
	all, err := resolve(ctx, o.local.workload, t.Hostname)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", t.Hostname, err)
	}
	var addrs []netip.Addr
	for _, a := range all {
		if a.Unmap().Is4() == o.OriginalDst.Addr().Unmap().Is4() {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		addrs = slices.Clone(all)
	}
	if len(addrs) == 0 {
		return fmt.Errorf("resolve %s: no address", t.Hostname)
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	room := max(1, 1+route.MaxTargets-len(o.plan.Targets))
	var targets []route.Target
	for _, a := range addrs[:min(len(addrs), room)] {
		targets = append(targets, t.Resolved(a))
	}
	o.plan.Targets = slices.Replace(o.plan.Targets, o.at, o.at+1, targets...)
	t = targets[0]
	o.Destination.Addr, o.ActualDst = t.Dial, t.Dial
	if o.Protocol == HBONE {
		o.Authority = t.Authority
	}
	return nil
}
