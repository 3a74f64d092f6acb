package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// Keepalive of connections from applications, and from and to what is outside of the mesh: tunnels have pings of their own.
const (
	keepAliveIdle     = 180 * time.Second
	keepAliveInterval = 180 * time.Second
	keepAliveProbes   = 9
)

// How long an accept loop rests when the process has run out of descriptors or memory.
const (
	acceptRest    = 10 * time.Millisecond
	acceptRestMax = 100 * time.Millisecond
)

// prepareListeners sets on the listeners what accepted sockets are to inherit.
func (p *Pod) prepareListeners() error {
	if l := p.cfg.Outbound; l != nil {
		err := l.Control(func(fd int) {
			p.congestion = p.proxy.chooseCongestion(fd)
			loop.NoDelay(fd)
			loop.ResetOnClose(fd)
			loop.KeepAlive(fd, keepAliveIdle, keepAliveInterval, keepAliveProbes)
		})
		if err != nil {
			return fmt.Errorf("prepare outbound listener: %w", err)
		}
	} else if fd, err := p.socket(loop.Family(netip.IPv4Unspecified())); err == nil {
		p.congestion = p.proxy.chooseCongestion(fd)
		loop.CloseFD(fd)
	}
	if l := p.cfg.Inbound; l != nil {
		if err := l.Control(loop.NoDelay); err != nil {
			return fmt.Errorf("prepare inbound listener: %w", err)
		}
	}
	if l := p.cfg.Passthrough; l != nil {
		err := l.Control(func(fd int) {
			loop.NoDelay(fd)
			loop.ResetOnClose(fd)
			loop.KeepAlive(fd, keepAliveIdle, keepAliveInterval, keepAliveProbes)
		})
		if err != nil {
			return fmt.Errorf("prepare passthrough listener: %w", err)
		}
	}
	return nil
}

// chooseCongestion sets a congestion control that does not pace on fd and returns its name, empty where the default is
// fine or nothing else is allowed: between an application and its agent there is no network to be careful with.
func (p *Proxy) chooseCongestion(fd int) string {
	if loop.Congestion(fd) != "bbr" {
		return ""
	}
	for _, name := range p.cfg.Congestion {
		if loop.SetCongestion(fd, name) == nil {
			return name
		}
	}
	return ""
}

// accept serves one listener until it is closed. Errors make it rest, never end.
func (p *Pod) accept(l *loop.Acceptor, name string, serve func(fd int, client netip.AddrPort)) {
	s := shorted{pod: p, listener: l, name: name}
	for {
		fd, client, err := l.Accept()
		switch {
		case err == nil:
			s.over()
			serve(fd, client)
		case errors.Is(err, os.ErrClosed):
			return
		default:
			if d := s.met(err); d > 0 && !p.rest(d) {
				return
			}
		}
	}
}

// outboundListener has the connections of the pod's application accepted on a loop, where most of them stay.
type outboundListener struct{ shorted }

// Accepted implements loop.AcceptHandler.
func (o *outboundListener) Accepted(fd int, client netip.AddrPort) {
	o.over()
	o.pod.serveOutbound(fd, client)
}

// AcceptFailed implements loop.AcceptHandler.
func (o *outboundListener) AcceptFailed(err error) time.Duration { return o.met(err) }

// AcceptEnded implements loop.AcceptHandler.
func (o *outboundListener) AcceptEnded() { o.pod.accepts.Done() }

// shorted is what a listener does while the process has no descriptors or memory left: it rests, and when it has rested
// for long enough it refuses who is waiting.
type shorted struct {
	pod      *Pod
	listener *loop.Acceptor
	name     string
	rest     time.Duration
}

func (s *shorted) over() { s.rest = 0 }

// met returns how long to rest after an error of accept(2), which also passes on network errors of single connections.
func (s *shorted) met(err error) time.Duration {
	s.pod.proxy.shortage.met(s.pod.log, s.name, err)
	if s.rest >= acceptRestMax && loop.Temporary(err) && s.pod.refuseWaiting(s.listener, s.name, err) {
		return 0
	}
	s.rest = min(max(acceptRest, 2*s.rest), acceptRestMax)
	return s.rest
}

// refuseWaiting resets one connection that waits on a listener, and reports it like any that was refused.
func (p *Pod) refuseWaiting(l *loop.Acceptor, name string, cause error) bool {
	client, ok := p.proxy.shortage.refuse(p.log, l)
	if !ok {
		return false
	}
	direction := Inbound
	if name == "outbound" {
		direction = Outbound
	}
	p.report(direction, Peer{Addr: client}, Peer{Addr: l.Addr()}, cause)
	return true
}

// rest waits, and reports false when the pod is stopped meanwhile.
func (p *Pod) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.stopping:
		return false
	}
}

// callsItself reports whether a connection to dst would come back to the agent: one of its ports on a loopback or own
// address, or one of its listeners.
func (p *Pod) callsItself(dst netip.AddrPort) bool {
	if slices.Contains(p.listeners, dst) {
		return true
	}
	if !slices.Contains(p.own, dst.Port()) {
		return false
	}
	if dst.Addr().IsLoopback() || dst.Addr().IsUnspecified() {
		return true
	}
	local := p.localNow()
	return local != nil && local.workload.HasAddress(dst.Addr())
}
