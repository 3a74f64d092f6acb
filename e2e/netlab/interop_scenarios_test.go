package netlab_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// Ports of the servers that an interop pod runs beside the line server on 8080.
const (
	echoPort   = 7000 // gives back what it gets, and the end behind it
	latePort   = 7001 // answers only after the end of what it gets
	earlyPort  = 7002 // says all that it has to say and ends, then listens
	abortPort  = 7003 // "reset" makes it reset the connection, else it says how the connection ended
	deniedPort = 7004 // forbidden by a policy
	closedPort = 7005 // nobody is there
	floodPort  = 7006 // "flood" makes it send without end, "still" not read, "drain" read without end
)

// bulk is what goes through an echo in each direction.
func bulk() int64 {
	if testing.Short() {
		return 4 << 20
	}
	return 50 << 20
}

// servers is what an application in a pod saw.
type servers struct{ seen chan string }

// serveInterop runs the servers of a pod.
func (it *interop) serveInterop(p *netlab.Pod) *servers {
	it.t.Helper()
	s := &servers{seen: make(chan string, 16)}
	it.serveFunc(p, echoPort, func(c *net.TCPConn) {
		if _, err := io.Copy(c, c); err == nil {
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		}
	})
	it.serveFunc(p, latePort, func(c *net.TCPConn) {
		h := sha256.New()
		n, err := io.Copy(h, c)
		fmt.Fprintf(c, "%d %x %v", n, h.Sum(nil), err)
	})
	it.serveFunc(p, earlyPort, func(c *net.TCPConn) {
		h := sha256.New()
		_, _ = io.WriteString(c, "early")
		_ = c.CloseWrite()
		n, err := io.Copy(h, c)
		s.seen <- fmt.Sprintf("%d %x %v", n, h.Sum(nil), err)
	})
	it.serveFunc(p, abortPort, func(c *net.TCPConn) {
		word := make([]byte, 5)
		if _, err := io.ReadFull(c, word); err != nil || string(word) == "reset" {
			_ = c.SetLinger(0)
			return
		}
		_, _ = io.WriteString(c, "ready")
		_, err := io.Copy(io.Discard, c)
		s.seen <- ending(err)
	})
	it.serve(p, deniedPort)
	it.serveFunc(p, floodPort, flood)
	return s
}

// flood moves bytes in one direction, or none.
func flood(c *net.TCPConn) {
	word := make([]byte, 5)
	if _, err := io.ReadFull(c, word); err != nil {
		return
	}
	switch string(word) {
	case "flood":
		_, _ = io.Copy(c, random(1<<40))
	case "drain":
		_, _ = io.Copy(io.Discard, c)
	default:
		for { // a write of nothing fails once the connection has
			if _, err := c.Write(nil); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// denyPort is the policy of deniedPort, for every pod.
func denyPort() *netlab.Policy {
	return &netlab.Policy{
		Name: "no-7004", Namespace: ns, Scope: "Namespace", Action: "Deny",
		Rules: [][][]map[string]any{{{{"destinationPorts": []any{deniedPort}}}}},
	}
}

func ending(err error) string {
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	}
	return err.Error()
}

// random returns n bytes that look like nothing, the same each time.
func random(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), n)
}

func sum(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return result(h, n, err)
}

func result(h hash.Hash, n int64, err error) string {
	return fmt.Sprintf("%d %x %v", n, h.Sum(nil), err)
}

// way is one direction of a lab: who calls whom, and where each side's agent writes.
type way struct {
	name           string
	from, to       *netlab.Pod
	source, target journal
	peerServes     bool // the other implementation is the server
	apps           *servers
}

func (w *way) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(w.to.Addr(), port) }

func (it *interop) open(w *way, port uint16) *session {
	it.t.Helper()
	s, err := it.dial(w.from, w.at(port))
	if err != nil {
		it.t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(interopPatience))
	return s
}

// testLines: small exchanges over both families and through a service; the server sees the client's own address, and
// both logs name both ends.
func (it *interop) testLines(w *way) {
	for _, to := range []struct {
		name string
		dst  netip.AddrPort
		src  netip.Addr
		tgt  netip.AddrPort
	}{
		{"IPv4", at(w.to), w.from.Addr(), at(w.to)},
		{"IPv6", at6(w.to), w.from.Addr6(), at6(w.to)},
		{"service", netip.AddrPortFrom(serviceOf(w.to), 80), w.from.Addr(), at(w.to)},
	} {
		words := it.mustCall(w.from, to.dst, w.to.Name())
		if words[1] != to.src.String() {
			it.t.Errorf("%s: the server sees %s, want the client's own address %s", to.name, words[1], to.src)
		}
		want := netlab.Record{
			"level": "INFO", "msg": "connection complete", "error": "", "dst.hbone_addr": to.tgt,
			"dst.addr": netip.AddrPortFrom(to.tgt.Addr(), 15008), "src.workload": w.from.Name(), "src.namespace": ns,
			"src.identity": spiffe(w.from.Name()), "dst.workload": w.to.Name(), "dst.namespace": ns, "dst.identity": spiffe(w.to.Name()),
		}
		up, down := 6, len(w.to.Name())+len(to.src.String())+8 // "hello\n", and "NAME ADDRESS hello\n"
		it.logged(w.source, with(want, netlab.Record{"direction": "outbound", "bytes_sent": up, "bytes_recv": down}))
		it.logged(w.target, with(want, netlab.Record{"direction": "inbound", "bytes_sent": down, "bytes_recv": up}))
		if to.name == "service" {
			it.logged(w.source, with(want, netlab.Record{"direction": "outbound", "dst.service": w.to.Name() + "." + ns + ".svc.cluster.local"}))
			if !w.peerServes { // the peer does not keep the services of a workload that it has from a file
				it.logged(w.target, with(want, netlab.Record{"direction": "inbound", "dst.service": w.to.Name() + "." + ns + ".svc.cluster.local"}))
			}
		}
	}
}

// serviceOf is the virtual address in front of one pod.
func serviceOf(p *netlab.Pod) netip.Addr {
	a := vip.As4()
	a[3] = p.Addr().As4()[2]*10 + p.Addr().As4()[3]
	return netip.AddrFrom4(a)
}

func with(a, b netlab.Record) netlab.Record {
	out := netlab.Record{}
	for _, r := range []netlab.Record{a, b} {
		for k, v := range r {
			out[k] = v
		}
	}
	return out
}

// testBulk: both directions full at once, each byte checked.
func (it *interop) testBulk(w *way) {
	s := it.open(w, echoPort)
	_ = s.SetDeadline(time.Now().Add(4 * time.Minute))
	var wg sync.WaitGroup
	var sent error
	wg.Go(func() {
		_, sent = io.Copy(s.TCPConn, random(bulk()))
		_ = s.CloseWrite()
	})
	got := sum(s.TCPConn)
	_ = s.SetDeadline(time.Now())
	wg.Wait()
	if want := sum(random(bulk())); got != want || sent != nil {
		it.t.Errorf("echo is %s, want %s; sending: %v", got, want, sent)
	}
}

// testHalfClose: each side ends its direction first and still gets everything of the other.
func (it *interop) testHalfClose(w *way) {
	const size = 1 << 20
	want := sum(random(size))
	s := it.open(w, latePort)
	if _, err := io.Copy(s.TCPConn, random(size)); err != nil {
		it.t.Fatal(err)
	}
	_ = s.CloseWrite()
	if answer, err := io.ReadAll(s); string(answer) != want || err != nil {
		it.t.Errorf("answer to a closed half is %q, %v; want %q", answer, err, want)
	}
	s = it.open(w, earlyPort)
	if greeting, err := io.ReadAll(s); string(greeting) != "early" || err != nil {
		it.t.Fatalf("greeting is %q, %v", greeting, err)
	}
	if _, err := io.Copy(s.TCPConn, random(size)); err != nil {
		it.t.Errorf("write to a server that has ended its direction: %v", err)
	}
	_ = s.CloseWrite()
	if got := it.seen(w); got != want {
		it.t.Errorf("the server got %s, want %s", got, want)
	}
}

func (it *interop) seen(w *way) string {
	select {
	case text := <-w.apps.seen:
		return text
	case <-time.After(interopPatience):
		return "nothing"
	}
}

// testMany: more connections than one tunnel may have streams (the peer allows 200 and uses 100), all open at once.
func (it *interop) testMany(w *way) {
	const many = 250
	failed := make(chan error, many)
	var wg, opened sync.WaitGroup
	opened.Add(many)
	for i := range many {
		wg.Go(func() {
			if err := it.oneOfMany(w, i, &opened); err != nil {
				failed <- fmt.Errorf("connection %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		it.t.Error(err)
		if len(failed) > 3 {
			it.t.Fatalf("and %d more", len(failed))
		}
	}
}

func (it *interop) oneOfMany(w *way, i int, opened *sync.WaitGroup) error {
	s, err := it.dial(w.from, w.at(8080))
	if err == nil {
		_, err = s.ask(fmt.Sprintf("first-%d", i))
	}
	opened.Done()
	if err != nil {
		return err
	}
	opened.Wait() // all of them are open now
	if _, err := s.ask(fmt.Sprintf("second-%d", i)); err != nil {
		return err
	}
	_ = s.CloseWrite()
	if rest, err := io.ReadAll(s.lines); err != nil || len(rest) > 0 {
		return fmt.Errorf("behind the answer: %q, %w", rest, err)
	}
	return nil
}

// testRefusals: status 503 for a port that nobody serves and 401 for one that a policy forbids. Culvert's client turns
// both into a reset; what the peer's does is its own affair, as long as it is an end.
func (it *interop) testRefusals(w *way) {
	for _, tt := range []struct {
		port         uint16
		status, want string
	}{{closedPort, "503", "onnection refused"}, {deniedPort, "401", "connection closed due to policy rejection: explicitly denied by: " + ns + "/no-7004"}} {
		s, err := it.dial(w.from, w.at(tt.port)) // the refusal may be faster than the answer to this
		if err == nil {
			_, err = s.ask("hello")
		}
		if err == nil {
			it.t.Errorf("port %d answered", tt.port)
		}
		if w.peerServes && errors.Is(err, io.EOF) {
			it.t.Errorf("port %d: the refusal looks like an orderly end", tt.port)
		}
		line := netlab.Record{"level": "ERROR", "dst.hbone_addr": w.at(tt.port), "src.identity": spiffe(w.from.Name())}
		it.logged(w.source, with(line, netlab.Record{"direction": "outbound", "error": tt.status}))
		it.logged(w.target, with(line, netlab.Record{"direction": "inbound", "error": tt.want}))
	}
}

// testAborts: a reset on one side ends the other. The peer passes a reset on as an orderly end of that direction
// (reference 1.9), so only what Culvert turns into a reset can be asked to be one.
func (it *interop) testAborts(w *way) {
	s := it.open(w, abortPort)
	if _, err := io.WriteString(s, "await"); err != nil {
		it.t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
		it.t.Fatal(err)
	}
	_ = s.SetLinger(0)
	_ = s.Close()
	if got := it.seen(w); got != "end" && got != "reset" {
		it.t.Errorf("the server saw %s after the client's reset", got)
	}
	s = it.open(w, abortPort)
	if _, err := io.WriteString(s, "reset"); err != nil {
		it.t.Fatal(err)
	}
	rest, err := io.ReadAll(s)
	if how := ending(err); len(rest) > 0 || (how != "end" && how != "reset") {
		it.t.Errorf("the client saw %q, %s after the server's reset", rest, how)
	}
	// Whoever goes on sending to an application that is gone learns of it.
	it.eventually("told of the reset", func() bool {
		_, err := s.Write(bytes.Repeat([]byte("x"), 1024))
		return err != nil
	})
}

// testStatuses speaks HBONE by hand to whichever implementation serves the pod.
func (it *interop) testStatuses(w *way) {
	c := it.raw(it.stranger, spiffe("stranger"), w.to)
	c.wantEcho(w.to, at(w.to).String())
	c.wantEcho(w.to, w.to.Name()+"."+ns+".svc.cluster.local:80")
	c.wantStatus(w.to, at(w.from).String(), 400)
	c.wantStatus(w.to, "no-port", 400)
	c.wantStatus(w.to, "nobody."+ns+".svc.cluster.local:80", 503)
	c.wantStatus(w.to, w.at(closedPort).String(), 503)
	c.wantStatus(w.to, w.at(15008).String(), 503)
	c.wantStatus(w.to, w.at(deniedPort).String(), 401)
}
