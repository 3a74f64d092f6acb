package proxy

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// peer is one inbound tunnel.
type peer struct {
	pod   *Pod
	t     *tunnel.Tunnel
	trust trust
	gone  bool // guarded by Pod.mu

	// On the loop: see turn.
	round   int64
	looked  int
	waiting []*inbound
}

// serveInbound begins the handshake with an accepted peer. When too many are under way it waits, and the kernel keeps the
// next peers in its queue. A peer that has failed too often waits by itself.
func (p *Pod) serveInbound(fd int, client netip.AddrPort) {
	local := loop.LocalAddr(fd)
	if p.crowds(fd, client.Addr()) {
		p.turnAway(fd, client, local, ErrCrowded)
		return
	}
	switch wait := p.proxy.penalties.turn(client.Addr()); {
	case wait == 0:
		hs, err := p.handshakes.begin(p.ctx, client.Addr())
		p.shake(hs, err, fd, client, local)
	case p.proxy.penalties.queue(client.Addr()):
		p.spawn(func() {
			hs, err := p.sitOut(wait, fd, client.Addr())
			p.shake(hs, err, fd, client, local)
		})
	default:
		p.turnAway(fd, client, local, errPenalty)
	}
}

// sitOut waits until it is the turn of a peer that has failed too often, and gives back its place in the queue. The peer has to
// be there still then, and a place for its handshake.
func (p *Pod) sitOut(wait time.Duration, fd int, peer netip.Addr) (*handshake, error) {
	defer p.proxy.penalties.leave(peer)
	for wait > 0 {
		switch {
		case !p.rest(wait):
			return nil, ErrDrain
		case loop.HungUp(fd):
			return nil, errImpatient
		}
		wait = p.proxy.penalties.turn(peer)
	}
	hs, _, err := p.handshakes.try(p.ctx, peer)
	if hs == nil && err == nil {
		err = errCrowd
	}
	return hs, err
}

// shake does the handshake, or turns the peer away with err.
func (p *Pod) shake(hs *handshake, err error, fd int, client, local netip.AddrPort) {
	if err != nil {
		p.turnAway(fd, client, local, err)
		return
	}
	p.work.Add(1)
	p.spawn(func() {
		err := p.acceptTunnel(hs.ctx, fd)
		ended := hs.ctx.Err() != nil
		p.handshakes.end(hs)
		if err != nil {
			if _, failed := errors.AsType[*tunnel.HandshakeError](err); failed && !ended && !timedOut(err) {
				p.proxy.penalties.strike(client.Addr(), 1)
			}
			p.refuse(client, local, err)
			p.work.Done()
		}
	})
}

func (p *Pod) turnAway(fd int, client, local netip.AddrPort, err error) {
	loop.AbortFD(fd)
	p.refuse(client, local, err)
}

// refuse reports a peer that got no tunnel.
func (p *Pod) refuse(client, local netip.AddrPort, err error) {
	p.report(Inbound, Peer{Addr: client}, Peer{Addr: local}, err)
}

// acceptTunnel does the server's handshake under the identity of the pod whose listener was reached; with which name the
// peer asked for it plays no part. The count in Pod.work goes over to the tunnel.
func (p *Pod) acceptTunnel(ctx context.Context, fd int) error {
	cfg := &p.proxy.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout)
	defer cancel()
	local, err := p.waitLocal(ctx)
	if err != nil {
		loop.AbortFD(fd)
		return err
	}
	s, err := cfg.Certificates.Get(ctx, local.id)
	if err != nil {
		loop.AbortFD(fd)
		return &IdentityError{local.id, err}
	}
	pr := &peer{pod: p, trust: trust{bundle: s.Bundle}}
	_, err = tunnel.Server(ctx, fd, mtls.Server(s, cfg.Revocation),
		tunnel.Config{
			Loop: p.proxy.quietest(), OnRequest: pr.request, OnClose: pr.closed,
			PingInterval: cfg.PingInterval, PingTimeout: cfg.PingTimeout,
		}, pr.ready)
	if err != nil {
		return err
	}
	p.register(pr)
	return nil
}

// ready implements the last check of tunnel.Server, before the first event.
func (pr *peer) ready(t *tunnel.Tunnel) error {
	id, err := peerID(t)
	if err != nil {
		return err
	}
	pr.t, pr.trust.peer = t, id
	return nil
}

// register makes the tunnel known to whoever ends tunnels, and does what they may have missed.
func (p *Pod) register(pr *peer) {
	p.mu.Lock()
	if !pr.gone {
		p.tunnels[pr] = struct{}{}
		p.flows.hold(pr.t.Remote.Addr(), 1)
	}
	draining := p.draining
	p.mu.Unlock()
	switch {
	case p.ctx.Err() != nil:
		pr.close(ErrDrain)
	case draining:
		pr.drain()
	}
	pr.recheck()
}

// closed is the tunnel's OnClose.
func (pr *peer) closed(t *tunnel.Tunnel, err error) {
	p := pr.pod
	if atFault(err) {
		if !errors.Is(err, tunnel.ErrDead) {
			p.proxy.penalties.strike(t.Remote.Addr(), thrownOut)
		}
		p.report(Inbound, Peer{Addr: t.Remote, ID: pr.trust.peer}, Peer{Addr: t.Local}, err)
	}
	p.mu.Lock()
	pr.gone = true
	if _, ok := p.tunnels[pr]; ok {
		delete(p.tunnels, pr)
		p.flows.hold(t.Remote.Addr(), -1)
	}
	p.mu.Unlock()
	p.work.Done()
}

func (pr *peer) drain() { pr.t.Post(pr.t.Drain) }

func (pr *peer) close(err error) {
	pr.t.Post(func() { pr.t.Close(err) })
}

// recheck ends the tunnel if a certificate of the peer's chain has been revoked.
func (pr *peer) recheck() {
	if err := pr.trust.check(pr.pod.proxy.cfg.Revocation, pr.t); err != nil {
		pr.close(err)
	}
}

func (p *Pod) peersLocked() []*peer {
	peers := make([]*peer, 0, len(p.tunnels))
	for pr := range p.tunnels {
		peers = append(peers, pr)
	}
	return peers
}

func (p *Pod) peers() []*peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peersLocked()
}
