package redirect_test

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestWaitingConnectionsGoToTheSuccessor: what an agent has not accepted when it stops listening is served by the agent
// that listens beside it.
func TestWaitingConnectionsGoToTheSuccessor(t *testing.T) {
	l := newLab(t)
	capture := l.capture(redirect.Options{})
	leaving, successor := l.listenShared(), l.listenShared()
	const many = 16 // the kernel spreads them over both
	for range many {
		var c net.Conn
		netnstest.Do(t, l.pod, func() (err error) {
			c, err = net.Dial("tcp", "10.0.0.1:9000")
			return err
		})
		defer c.Close()
	}
	l.must(leaving.Close())
	l.must(successor.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second)))
	for i := range many {
		c, err := successor.Accept()
		if err != nil {
			t.Fatalf("%d of %d connections came: %v", i, many, err)
		}
		defer c.Close()
		if dst, err := originalDst(c.(*net.TCPConn)); err != nil || dst.String() != "10.0.0.1:9000" {
			t.Errorf("original destination of a connection that was moved: %s, %v", dst, err)
		}
	}
	l.must(capture.Delete())
}

// listenShared opens an agent's outbound listener that others may open too.
func (l *lab) listenShared() net.Listener {
	l.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctlErr := raw.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, redirect.AgentMark)
			}
		})
		if ctlErr != nil {
			return ctlErr
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	var listener net.Listener
	netnstest.Do(l, l.pod, func() (err error) {
		listener, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf("[::]:%d", redirect.PortOutbound))
		return err
	})
	l.Cleanup(func() { _ = listener.Close() })
	return listener
}
