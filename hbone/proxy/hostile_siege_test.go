package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// The bounds that hold whatever a peer does. slowness multiplies those on time, for machines that have other things to do.
const (
	stallBound  = 1500 * time.Millisecond // no round trip of a stream that behaves takes longer
	probeBound  = 4 * time.Second         // nor does a new tunnel with a first echo
	memoryBound = 32 << 20                // live heap of both agents, the attacker and the test, above what it was before
)

// readySockets is how many sockets, and one goroutine for them, the agent may keep for the next connections to each pod.
const readySockets = 2 * 16

// slowness is read from CULVERT_TEST_SLOWNESS, a factor.
func slowness() time.Duration {
	if n, err := strconv.Atoi(os.Getenv("CULVERT_TEST_SLOWNESS")); err == nil && n > 0 {
		return time.Duration(n)
	}
	return 1
}

// siege is an agent under attack, and what goes on there at the same time and has to go on:
//
//	client ─► its own agent ─► tunnel ─┬─► server ─► echo     (calm stream 1)
//	                                   │
//	                                   └─► other  ─► echo     (calm stream 2)
//
// The two pods share one loop, and so does whatever the attacker opens.
type siege struct {
	*rig
	one, two      *node
	client        *pod
	server, other *pod
	dst           netip.AddrPort // the application in server that echoes
	sink          netip.AddrPort // one there that accepts, and then does nothing
	source, drain netip.AddrPort // others that send without end, and take everything
	seen          *watcher       // what the agent under attack reports
	calm          []*calm
	before        usage
	bound         uint64   // of memory
	allies        []func() // end what the attacker has besides tunnels
	weigher       sync.WaitGroup
	stop          chan struct{}
	peak          uint64
}

// usage is what an attack must not leave behind.
type usage struct {
	goroutines, descriptors int
	heap                    uint64
}

// newSiege starts the agents and the streams that behave. change is about the agent under attack, that of the servers.
func newSiege(t *testing.T, change func(*proxy.Config)) *siege { return besiege(t, nil, change) }

// besiege is newSiege where either agent may be the one under attack; seen is of the one that is changed.
func besiege(t *testing.T, one, two func(*proxy.Config)) *siege {
	t.Helper()
	gc := debug.SetGCPercent(25) // what is live is measured when the collector has run
	t.Cleanup(func() { debug.SetGCPercent(gc) })
	r := newRig(t)
	s := &siege{rig: r, seen: newWatcher(), bound: memoryBound, stop: make(chan struct{})}
	oneLoop := func(c *proxy.Config) {
		c.Loops = []*loop.Loop{runLoop(t)}
		c.Penalty = -1 // so that each defence is seen by itself, and attacks follow each other
	}
	s.one = r.node(func(c *proxy.Config) {
		oneLoop(c)
		if one != nil {
			c.Observer = s.seen
			one(c)
		}
	})
	s.two = r.node(func(c *proxy.Config) {
		oneLoop(c)
		if one == nil {
			c.Observer = s.seen
		}
		if two != nil {
			two(c)
		}
	})
	s.client = s.one.pod("client", "127.0.10.1")
	s.server, s.other = s.two.pod("server", "127.0.10.2"), s.two.pod("other", "127.0.10.3")
	s.dst = s.echo(s.server.ip)
	s.sink = r.serve(s.server.ip, func(*net.TCPConn) { <-s.stop }).addr
	s.drain = r.serve(s.server.ip, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }).addr
	var zeros [32 << 10]byte
	s.source = r.serve(s.server.ip, func(c *net.TCPConn) {
		_ = c.SetWriteBuffer(16 << 10)
		for {
			if _, err := c.Write(zeros[:]); err != nil {
				return
			}
		}
	}).addr
	s.behave("server", s.client.dial(s.dst))
	s.behave("other", s.client.dial(s.echo(s.other.ip)))
	s.probe() // so that what the first tunnel allocates for good is there
	for _, c := range s.calm {
		c.wait(t, 2)
	}
	s.before = measure()
	s.weigher.Go(s.weigh)
	t.Cleanup(func() {
		s.end()
		for _, c := range s.calm {
			c.halt()
		}
	})
	return s
}

// echo is the rig's without a bound on time: a siege may last.
func (s *siege) echo(ip netip.Addr) netip.AddrPort {
	s.t.Helper()
	return s.serve(ip, func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Time{})
		_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		_ = c.CloseWrite()
	}).addr
}

func measure() usage {
	runtime.GC()
	return usage{runtime.NumGoroutine(), descriptors(), liveHeap()}
}

// liveHeap is what the collector's last run has found alive.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// weigh watches the heap until the siege ends.
func (s *siege) weigh() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s.peak = max(s.peak, liveHeap())
		select {
		case <-tick.C:
		case <-s.stop:
			return
		}
	}
}

// end stops the weighing.
func (s *siege) end() {
	select {
	case <-s.stop:
	default:
		runtime.GC()
		close(s.stop)
		s.weigher.Wait()
	}
}

// survived checks, when the attack is over, that it has harmed nobody: each calm stream got back every byte and never
// waited too long, memory stayed below the bound, and goroutines and descriptors are as before.
func (s *siege) survived() {
	t := s.t
	t.Helper()
	s.end()
	for _, end := range s.allies {
		end()
	}
	s.allies = nil
	if grown := int64(s.peak) - int64(s.before.heap); grown > int64(s.bound) {
		t.Errorf("memory grew by %d KiB, more than %d KiB", grown>>10, s.bound>>10)
	}
	var after usage
	if !eventually(func() bool {
		after = usage{runtime.NumGoroutine(), descriptors(), 0}
		return after.goroutines <= s.before.goroutines+1 && after.descriptors <= s.before.descriptors+readySockets
	}) {
		t.Errorf("left behind: %d goroutines and %d descriptors, there were %d and %d",
			after.goroutines, after.descriptors, s.before.goroutines, s.before.descriptors)
		if os.Getenv("CULVERT_TEST_STACKS") != "" {
			b := make([]byte, 1<<20)
			t.Logf("%s", b[:runtime.Stack(b, true)])
		}
	}
	for _, c := range s.calm {
		c.finish(t)
	}
}

// probe is a peer that comes now: a handshake, a CONNECT and an echo, in time.
func (s *siege) probe() {
	s.t.Helper()
	start := time.Now()
	p := s.raw("probe", s.server)
	p.Connect(1, s.dst.String())
	if status := p.WaitStatus(s.t, 1); status != 200 {
		s.t.Fatalf("a peer that behaves gets status %d", status)
	}
	p.Data(1, []byte("probe"), true)
	p.Wait(s.t, 1, "echo", func(st hbonetest.Stream) bool { return string(st.Data) == "probe" && st.Ended })
	if took := time.Since(start); took > probeBound*slowness() {
		s.t.Errorf("a peer that behaves waited %v for an echo, more than %v", took, probeBound*slowness())
	}
	p.Conn.Close()
}

// calm is a stream that behaves: it sends blocks of any bytes and expects each back before it sends the next.
type calm struct {
	name  string
	conn  *net.TCPConn
	quit  chan struct{}
	once  sync.Once
	done  chan struct{}
	turns atomic.Int64

	// Valid when done is closed.
	err   error
	worst time.Duration
	bytes int64
}

func (s *siege) behave(name string, conn *net.TCPConn) {
	_ = conn.SetDeadline(time.Time{})
	c := &calm{name: name, conn: conn, quit: make(chan struct{}), done: make(chan struct{})}
	s.calm = append(s.calm, c)
	go c.run()
}

const largestBlock = 40 << 10

func (c *calm) run() {
	defer close(c.done)
	rng := rand.New(rand.NewPCG(1, uint64(len(c.name))))
	sent, got := make([]byte, largestBlock), make([]byte, largestBlock)
	for c.err == nil {
		select {
		case <-c.quit:
			return
		default:
		}
		n := 1 + rng.IntN(1<<rng.IntN(16))%largestBlock
		for i := 0; i < n; i += 8 {
			word := rng.Uint64()
			for j := i; j < min(i+8, n); j++ {
				sent[j] = byte(word)
				word >>= 8
			}
		}
		c.turn(sent[:n], got[:n])
	}
}

// turn is one block there and back.
func (c *calm) turn(sent, got []byte) {
	start := time.Now()
	_ = c.conn.SetDeadline(start.Add(10 * stallBound * slowness()))
	if _, c.err = c.conn.Write(sent); c.err != nil {
		return
	}
	if _, c.err = io.ReadFull(c.conn, got); c.err != nil {
		return
	}
	if !bytes.Equal(sent, got) {
		c.err = errors.New("other bytes came back")
	}
	c.worst = max(c.worst, time.Since(start))
	c.bytes += int64(len(sent))
	c.turns.Add(1)
	time.Sleep(time.Millisecond) // leave something to the attack
}

// wait waits for n more round trips.
func (c *calm) wait(t testing.TB, n int64) {
	t.Helper()
	until := c.turns.Load() + n
	waitFor(t, "progress of calm stream "+c.name, func() bool { return c.turns.Load() >= until })
}

// halt ends the stream without a look at it.
func (c *calm) halt() {
	c.once.Do(func() { close(c.quit) })
	<-c.done
	_ = c.conn.Close()
}

// finish ends the stream in order and judges it.
func (c *calm) finish(t testing.TB) {
	t.Helper()
	c.once.Do(func() { close(c.quit) })
	<-c.done
	if c.err != nil {
		t.Errorf("calm stream %s ended after %d bytes: %v", c.name, c.bytes, c.err)
		return
	}
	if err := c.conn.CloseWrite(); err != nil {
		t.Errorf("calm stream %s: %v", c.name, err)
	}
	_ = c.conn.SetDeadline(time.Now().Add(patience))
	if rest, err := io.ReadAll(c.conn); err != nil || len(rest) > 0 {
		t.Errorf("behind calm stream %s came %d bytes, %v", c.name, len(rest), err)
	}
	if c.worst > stallBound*slowness() {
		t.Errorf("calm stream %s stalled for %v, more than %v", c.name, c.worst, stallBound*slowness())
	}
	t.Logf("calm stream %s: %d bytes in %d round trips, the longest %v", c.name, c.bytes, c.turns.Load(), c.worst.Round(time.Microsecond))
}

// watcher is an Observer that keeps what ended badly, and not more of it than it is asked for.
type watcher struct {
	mu     sync.Mutex
	failed []*proxy.Flow
}

func newWatcher() *watcher { return &watcher{} }

// Opened implements proxy.Observer.
func (w *watcher) Opened(*proxy.Flow) {}

// Noted implements proxy.Observer.
func (w *watcher) Noted(*proxy.Flow) {}

// Closed implements proxy.Observer.
func (w *watcher) Closed(f *proxy.Flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.Err != nil && len(w.failed) < 2000 {
		w.failed = append(w.failed, f)
	}
}

// reason waits for a flow from (or, without an address, of anybody) that ended for a reason with this text.
func (w *watcher) reason(t testing.TB, from netip.AddrPort, flag proxy.Flag, text string) *proxy.Flow {
	t.Helper()
	var found *proxy.Flow
	if !eventually(func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.IndexFunc(w.failed, func(f *proxy.Flow) bool {
			return (!from.IsValid() || f.Source.Addr == from) && f.Flag == flag && strings.Contains(f.Err.Error(), text)
		})
		if i >= 0 {
			found = w.failed[i]
		}
		return i >= 0
	}) {
		t.Errorf("nothing was reported with flag %s and %q; what was:%s", flag, text, w.all(from))
	}
	return found
}

// forget drops what was reported of an address: the port of a connection that was reset may be given to another.
func (w *watcher) forget(from netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = slices.DeleteFunc(w.failed, func(f *proxy.Flow) bool { return f.Source.Addr == from })
}

// all lists the different reasons that were reported.
func (w *watcher) all(from netip.AddrPort) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, f := range w.failed {
		if !from.IsValid() || f.Source.Addr == from {
			out = append(out, "\n"+f.Direction.String()+" "+f.Flag.String()+" "+f.Err.Error())
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), "")
}
