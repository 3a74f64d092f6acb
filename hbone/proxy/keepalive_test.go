package proxy_test

import (
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// notedSockets remembers what it has made.
type notedSockets struct {
	from proxy.Sockets
	mu   sync.Mutex
	fds  []int
}

func (s *notedSockets) Sockets(fds []int, family int) error {
	err := s.from.Sockets(fds, family)
	if err == nil {
		s.mu.Lock()
		s.fds = append(s.fds, fds...)
		s.mu.Unlock()
	}
	return err
}

// An application's keepalive ends at its agent, which answers it. So the agent's own leg to a destination outside of the
// mesh has to have one: nobody else finds out that the destination has vanished, or keeps a NAT's entry alive.
func TestPlainConnectionsAreKeptAlive(t *testing.T) {
	r := newRig(t)
	n := r.node(nil)
	w := r.workloadAt("client", "127.0.10.1", nil)
	sockets := &notedSockets{from: podSockets{w.Addresses[0]}}
	client := n.enrol(w, sockets)
	c := client.dial(r.echo(netip.MustParseAddr("127.0.30.1"))) // nobody whom the mesh knows
	exchange(t, c, "hello")
	sockets.mu.Lock()
	defer sockets.mu.Unlock()
	checked := 0
	for _, fd := range sockets.fds {
		sa, err := syscall.Getpeername(fd)
		if err != nil {
			continue
		}
		if in, ok := sa.(*syscall.SockaddrInet4); !ok || in.Addr != [4]byte{127, 0, 30, 1} {
			continue
		}
		checked++
		on, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
		if err != nil {
			t.Fatal(err)
		}
		if on == 0 {
			t.Error("the agent's connection to a destination outside of the mesh has no keepalive: it lasts for ever when that has vanished")
		}
	}
	if checked != 1 {
		t.Fatalf("found %d connections to the destination, want 1", checked)
	}
}
