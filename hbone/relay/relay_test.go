package relay_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/relay"
)

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c); _ = c.CloseWrite() }

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func TestEcho(t *testing.T) {
	for _, size := range []int{0, 1, 100, 16375, 16376, 1 << 20, 20 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := newPath(t, serve(t, echo))
			c := p.tcp()
			want := noise(uint64(size), size)
			go func() {
				_, _ = c.Write(want)
				_ = c.CloseWrite()
			}()
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("read %d bytes, error %v; want %d bytes back", len(got), err, len(want))
			}
			if err := wait(t, "ingress relay", p.inDone); err != nil {
				t.Error(err)
			}
			if err := wait(t, "egress relay", p.outDone); err != nil {
				t.Error(err)
			}
			if p.fromApp.Load() != int64(size) {
				t.Errorf("counted %d bytes from the application, want %d", p.fromApp.Load(), size)
			}
		})
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	p := newPath(t, serve(t, echo))
	var wg sync.WaitGroup
	for i := range 90 {
		c := p.tcp()
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			want := noise(uint64(i), 200_000+r.IntN(1_000_000))
			go func() {
				for rest := want; len(rest) > 0; {
					n := min(len(rest), 1+r.IntN(100_000))
					if _, err := c.Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				_ = c.CloseWrite()
			}()
			h := sha256.New()
			_ = c.SetReadDeadline(time.Now().Add(60 * time.Second))
			if _, err := io.Copy(h, c); err != nil {
				t.Error(err)
			}
			if want := sha256.Sum256(want); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("connection %d: bytes differ", i)
			}
		})
	}
	wg.Wait()
}

func TestHalfCloseKeepsTheOtherDirection(t *testing.T) {
	p := newPath(t, serve(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		_, _ = fmt.Fprintf(c, "got %d", len(b))
	}))
	c := p.tcp()
	_, _ = c.Write(make([]byte, 1000))
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); err != nil || string(got) != "got 1000" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestServerEndsFirst(t *testing.T) {
	got := make(chan string, 1)
	p := newPath(t, serve(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		got <- string(b)
	}))
	c := p.tcp()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Fatalf("read %q, %v", b, err)
	}
	_, _ = c.Write([]byte("still here"))
	_ = c.CloseWrite()
	if s := <-got; s != "still here" {
		t.Fatalf("server read %q", s)
	}
}

func TestAbortIsAbortOnTheOtherSide(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		p := newPath(t, serve(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			_ = c.SetLinger(0)
		}))
		c := p.tcp()
		_, _ = c.Write([]byte("hello"))
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("client read ended with %v, want a reset", err)
		}
	})
	t.Run("client", func(t *testing.T) {
		ended, got := make(chan error, 1), make(chan struct{})
		p := newPath(t, serve(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			close(got)
			_, err := io.ReadAll(c)
			ended <- err
		}))
		c := p.tcp()
		_, _ = c.Write([]byte("hello"))
		<-got
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := wait(t, "server", ended); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("server read ended with %v, want a reset", err)
		}
	})
	t.Run("tunnel", func(t *testing.T) {
		ended, got := make(chan error, 1), make(chan struct{})
		p := newPath(t, serve(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			close(got)
			_, err := io.ReadAll(c)
			ended <- err
		}))
		c := p.tcp()
		_, _ = c.Write([]byte("hello"))
		<-got
		p.client.Post(func() { p.client.Close(nil) })
		if err := wait(t, "server", ended); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("server read ended with %v, want a reset", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("client read ended with %v, want a reset", err)
		}
	})
}

func TestStalledReaderHoldsNobodyBack(t *testing.T) {
	release := make(chan struct{})
	first := make(chan struct{}, 1)
	first <- struct{}{}
	p := newPath(t, serve(t, func(c *net.TCPConn) {
		select {
		case <-first:
			<-release // never reads meanwhile
			_, _ = io.Copy(io.Discard, c)
		default:
			echo(c)
		}
	}))
	stalled := p.tcp()
	chunk := make([]byte, 1<<20)
	before := writeUntilBlocked(t, stalled, chunk)
	for range 200 {
		c := p.tcp()
		_, _ = c.Write([]byte("ping"))
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	close(release)
	_ = stalled.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for sent := before; sent < 2*before; {
		n, err := stalled.Write(chunk)
		if err != nil {
			t.Fatalf("stalled connection did not go on: %v", err)
		}
		sent += n
	}
}

// writeUntilBlocked writes until nothing is taken for a while and returns how much was.
func writeUntilBlocked(t *testing.T, c net.Conn, chunk []byte) int {
	t.Helper()
	for sent := 0; ; {
		_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Write(chunk)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return sent
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusedDestination(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	p := newPath(t, gone)
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(p.ingress.Addr()))
	if err == nil { // else the reset was quicker than dialling
		defer func() { _ = c.Close() }()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("client ended with %v, want a reset", err)
	}
}

func BenchmarkBulk(b *testing.B) {
	p := newPath(b, serve(b, func(c *net.TCPConn) { _, _ = io.CopyBuffer(io.Discard, c, make([]byte, 1<<20)) }))
	c := p.tcp()
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	p := newPath(b, serve(b, echo))
	c := p.tcp()
	buf := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Write(buf)
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// deaf is the handler of a request that is only there for its HEADERS.
type deaf struct{}

func (deaf) Response(*h2.Header, bool) {}
func (deaf) Data([]byte, bool)         {}
func (deaf) DataDone()                 {}
func (deaf) Writable()                 {}
func (deaf) Closed(error)              {}

// Requests that fill a tunnel's small buffer twice leave no room for payload behind them. That is no end of the application.
func TestManyRequestsBeforeAnUpload(t *testing.T) {
	got := make(chan string, 200)
	p := newPath(t, serve(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	fd := connectTo(t, l.Addr().(*net.TCPAddr).AddrPort())
	app, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Close() }()

	done, up := make(chan error, 1), make(chan struct{})
	r := relay.New(p.in, func(err error) { done <- err })
	p.in.Post(func() {
		err := r.Request(p.client, &h2.Header{Method: "CONNECT", Authority: p.dst.String()}, func(*h2.Header, error) {
			r.Start(fd)
			close(up)
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-up
	if _, err := app.Write([]byte("first ")); err != nil {
		t.Fatal(err)
	}
	for r.FromApp.Load() == 0 {
		runtime.Gosched()
	}
	// One batch of events, the application's among them, on a loop where many tunnels wait for peers that do not read.
	over := make(chan struct{})
	p.in.Post(func() {
		defer close(over)
		for range 64 {
			p.in.GetSending()
		}
		if _, err := app.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		// 345 bytes each.
		head := &h2.Header{Method: "CONNECT", Authority: p.dst.String(), Fields: []h2.Field{
			{Name: "baggage", Value: strings.Repeat("x", 313-len(p.dst.String()))},
		}}
		for range 99 {
			if _, err := p.client.Open(head, deaf{}); err != nil {
				t.Error(err)
			}
		}
		r.Run() // its turn in this round of the loop
	})
	<-over
	_, _ = app.Write([]byte(" world"))
	_ = app.(*net.TCPConn).CloseWrite()
	select {
	case s := <-got:
		if s != "first hello world" {
			t.Errorf("server read %q and an end in order", s)
		}
	case <-time.After(5 * time.Second):
		t.Error("server read nothing")
	}
}

// A read ends short at urgent data (telnet, FTP's ABOR), which does not mean that there is nothing behind it.
func TestUrgentDataDoesNotStopAConnection(t *testing.T) {
	got := make(chan []byte, 1)
	p := newPath(t, serve(t, func(c *net.TCPConn) {
		b := make([]byte, len("abc")+len("def"))
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _ := io.ReadFull(c, b)
		got <- b[:n]
	}))
	c := p.tcp()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// The loop looks at the connection when all of it is there.
	busy, free := make(chan struct{}), make(chan struct{})
	p.in.Post(func() { close(busy); <-free })
	<-busy
	_, _ = c.Write([]byte("abc"))
	_ = raw.Control(func(fd uintptr) { err = unix.Send(int(fd), []byte("!"), unix.MSG_OOB) })
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("def"))
	close(free)
	if b := <-got; !bytes.Equal(b, []byte("abcdef")) {
		t.Errorf("server read %q", b)
	}
}
