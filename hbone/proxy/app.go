package proxy

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/identity"
)

// socket makes one socket in the pod's namespace.
func (p *Pod) socket(family int) (int, error) {
	var one [1]int
	if err := p.cfg.Sockets.Sockets(one[:], family); err != nil {
		return -1, err
	}
	return one[0], nil
}

// appSocket makes a socket for a connection to the pod's own application.
func (p *Pod) appSocket(family int) (int, error) {
	fd, err := p.socket(family)
	if err == nil {
		p.prepare(fd)
	}
	return fd, err
}

// prepare sets what all sockets that lead to the pod's own application need.
func (p *Pod) prepare(fd int) {
	loop.NoDelay(fd)
	loop.ResetOnClose(fd)
	if p.congestion != "" {
		_ = loop.SetCongestion(fd, p.congestion)
	}
}

// stash keeps sockets ready for inbound connections, so that a loop need not wait for one to be made in the pod's
// namespace. Its goroutine exists only while connections come.
type stash struct {
	pod  *Pod
	v4   chan int
	v6   chan int
	want chan int // families that run low

	mu      sync.Mutex
	running bool
	closed  bool
	done    sync.WaitGroup
	quit    chan struct{}
}

const (
	stashSize = 16
	stashIdle = time.Minute
)

func (s *stash) init(p *Pod) {
	s.pod, s.v4, s.v6 = p, make(chan int, stashSize), make(chan int, stashSize)
	s.want, s.quit = make(chan int, 2), make(chan struct{})
}

func (s *stash) of(family int) chan int {
	if family == loop.Family(netip.IPv6Unspecified()) {
		return s.v6
	}
	return s.v4
}

// take returns a socket of the family, or -1 when none is ready. It does not block.
func (s *stash) take(family int) int {
	ready := s.of(family)
	fd := -1
	select {
	case fd = <-ready:
	default:
	}
	if len(ready) <= stashSize/2 {
		select {
		case s.want <- family:
		default:
		}
		s.mu.Lock()
		if !s.running && !s.closed {
			s.running = true
			s.done.Go(s.fill)
		}
		s.mu.Unlock()
	}
	return fd
}

// fill makes sockets as long as they are asked for.
func (s *stash) fill() {
	idle := time.NewTimer(stashIdle)
	defer idle.Stop()
	for {
		select {
		case family := <-s.want:
			idle.Reset(stashIdle)
			s.refill(family)
			continue
		case <-idle.C:
		case <-s.quit:
		}
		s.mu.Lock()
		s.running = false
		s.mu.Unlock()
		s.empty()
		return
	}
}

// refill makes what is missing in one visit to the namespace.
func (s *stash) refill(family int) {
	ready := s.of(family)
	var room [stashSize]int
	fds := room[:cap(ready)-len(ready)]
	if s.pod.cfg.Sockets.Sockets(fds, family) != nil {
		return // who needs one finds out, and says so
	}
	for _, fd := range fds {
		s.pod.prepare(fd)
		ready <- fd
	}
}

// empty closes what is ready; sockets that nobody needs are not worth their memory.
func (s *stash) empty() {
	for {
		select {
		case fd := <-s.v4:
			loop.CloseFD(fd)
		case fd := <-s.v6:
			loop.CloseFD(fd)
		default:
			return
		}
	}
}

// close ends the stash. Nothing may be taken any more.
func (s *stash) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.quit)
	s.done.Wait()
	s.empty()
}

// The PROXY protocol, version 2 (reference 1.8): its signature, then version and command PROXY.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n\x21"

const proxyTLVIdentity = 0xD0

// proxyHeader tells a waypoint whose connection it gets and where it was to go.
func proxyHeader(client, target netip.AddrPort, id identity.ID) []byte {
	var addrs []byte
	family := byte(0x00)
	if client.Addr().Is4() == target.Addr().Is4() {
		family = 0x21
		if client.Addr().Is4() {
			family = 0x11
		}
		addrs = append(client.Addr().AsSlice(), target.Addr().AsSlice()...)
		addrs = binary.BigEndian.AppendUint16(addrs, client.Port())
		addrs = binary.BigEndian.AppendUint16(addrs, target.Port())
	}
	if !id.IsZero() {
		addrs = append(addrs, proxyTLVIdentity)
		addrs = binary.BigEndian.AppendUint16(addrs, uint16(len(id.String())))
		addrs = append(addrs, id.String()...)
	}
	b := append([]byte(proxySignature), family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addrs)))
	return append(b, addrs...)
}
