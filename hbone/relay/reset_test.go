package relay_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/relay"
)

// refuser is a server that answers before it has read the whole request and closes: the kernel sends a reset behind the
// answer. The loop does not look at the connection until both are there and last has been called on it.
func refuser(t *testing.T, l *loop.Loop, last func()) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		busy, free := make(chan struct{}), make(chan struct{})
		held := func() {
			close(busy)
			<-free
			last()
		}
		if !l.Post(held) {
			t.Error("the loop is closed")
			return
		}
		<-busy
		_, _ = c.Write([]byte("too large"))
		_ = c.Close()
		close(free)
	}
}

// wantAnswerThenReset is what the client of a refuser sees without a mesh.
func wantAnswerThenReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_, _ = c.Write(make([]byte, 50000))
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); string(got) != "too large" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %q, %v, want the answer and a reset", got, err)
	}
}

func TestAnswerBeforeAReset(t *testing.T) {
	for name, last := range map[string]func(*relay.Relay){
		"found by an event": func(*relay.Relay) {},
		"found by a write":  func(r *relay.Relay) { r.Data([]byte("more"), false); r.DataDone() },
	} {
		t.Run(name, func(t *testing.T) {
			var p *path
			l := newLoop(t)
			p = newPathOn(t, newLoop(t), l, serve(t, refuser(t, l, func() { last(p.egress) })))
			wantAnswerThenReset(t, p.tcp())
			if err := wait(t, "egress relay", p.outDone); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("egress relay ended with %v", err)
			}
		})
	}
}

// TestLeftoverThatNobodyTakes: a peer that reads nothing does not keep what an application has left behind for ever.
func TestLeftoverThatNobodyTakes(t *testing.T) {
	p := newPath(t, serve(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1)) // bytes flow
		writeUntilBlocked(t, c, make([]byte, 1<<20))
		_ = c.SetLinger(0)
	}))
	set := make(chan struct{})
	p.out.Post(func() { p.linger = 100 * time.Millisecond; close(set) })
	<-set
	_, _ = p.tcp().Write([]byte("x")) // and never reads
	if err := wait(t, "egress relay", p.outDone); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("egress relay ended with %v", err)
	}
}

func TestPairPassesTheAnswerBeforeAReset(t *testing.T) {
	l := newLoop(t)
	to := serve(t, refuser(t, l, func() {}))
	in := listen(t)
	done := make(chan error, 1)
	go func() {
		fd, _, err := in.Accept()
		if err != nil {
			done <- err
			return
		}
		out := dial(t, to)
		l.Post(func() {
			relay.NewPair(l, fd, out, 5*time.Second, func(err error) {
				if err != nil {
					done <- err
				}
			}, func(err error) { done <- err })
		})
	}()
	c, err := net.DialTimeout("tcp", in.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	wantAnswerThenReset(t, c.(*net.TCPConn))
	if err := wait(t, "pair", done); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("pair ended with %v", err)
	}
}
