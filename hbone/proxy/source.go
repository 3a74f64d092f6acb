package proxy

import (
	"errors"
	"io/fs"
	"net/netip"
	"syscall"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// call begins to connect a socket to the application, with the client's address where that is kept. It may wait for the
// socket to be made.
func (p *Pod) call(client netip.Addr, app netip.AddrPort) (fd int, err error) {
	for _, anyPort := range []bool{false, true} {
		if fd, err = p.readySocket(loop.Family(app.Addr())); err != nil {
			return -1, err
		}
		if err = p.startCall(fd, client, app, anyPort); err == nil {
			return fd, nil
		}
		loop.CloseFD(fd)
		if !inUse(err) {
			break
		}
	}
	return -1, err
}

// readySocket returns a socket of the stash, or makes one.
func (p *Pod) readySocket(family int) (int, error) {
	if fd := p.stash.take(family); fd >= 0 {
		return fd, nil
	}
	return p.appSocket(family)
}

// startCall is call with a socket, which stays the caller's. Where its port is inUse another one may connect, with anyPort:
// a socket that is bound keeps its port.
func (p *Pod) startCall(fd int, client netip.Addr, app netip.AddrPort, anyPort bool) error {
	if err := p.keepSource(fd, client, app.Addr(), anyPort); err != nil {
		return err
	}
	return loop.StartConnect(fd, app)
}

// inUse reports whether a connection between the same addresses and ports is there already.
func inUse(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }

// The ports that sockets with a client's address have: below those that the kernel gives to clients
// (net.ipv4.ip_local_port_range begins at 32768), above the agent's and most servers'.
const (
	firstSourcePort = 16384
	sourcePorts     = 32768 - firstSourcePort
)

// bindSource binds a socket to the client's address and a port that clients hardly ever have. The kernel does not know here
// which ports a client uses on its own machine. A connection of the client that is redirected to the agent, and the agent's
// own to where that was to go, with the same port would be one and the same to connection tracking, and neither would get
// any further; so would one beside any other that goes on. anyPort leaves the port to the kernel all the same.
func (p *Pod) bindSource(fd int, client netip.Addr, anyPort bool) error {
	for try := 0; try < 4 && !anyPort; try++ {
		port := firstSourcePort + p.sourcePort.Add(1)%sourcePorts
		if err := loop.BindTransparent(fd, netip.AddrPortFrom(client, uint16(port))); !errors.Is(err, syscall.EADDRINUSE) { // somebody listens there
			return err
		}
	}
	return loop.BindTransparent(fd, netip.AddrPortFrom(client, 0))
}

// keepSource gives the socket the client's address as its own, where that is wanted and makes sense: not for a call of
// the pod to itself, nor across address families.
func (p *Pod) keepSource(fd int, client, app netip.Addr, anyPort bool) error {
	mode := p.proxy.cfg.Source
	if mode == SourceNever || p.cfg.NoSource || client == app || client.Is4() != app.Is4() || app.IsLoopback() && !client.IsLoopback() {
		return nil
	}
	if mode == SourceAuto && p.opaque.Load() {
		return nil
	}
	err := p.bindSource(fd, client, anyPort)
	if err == nil || mode == SourceAlways {
		return err
	}
	// Without the privilege there is no use in trying again. Other failures are about one address.
	if errors.Is(err, fs.ErrPermission) && !p.opaque.Swap(true) {
		p.log.Warn("applications will not see their clients' addresses", "error", err)
	}
	return nil
}
