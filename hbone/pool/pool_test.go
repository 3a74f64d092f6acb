package pool_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/hbonetest"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/pool"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

var (
	me  = identity.MustParse("spiffe://cluster.local/ns/default/sa/me")
	you = identity.MustParse("spiffe://cluster.local/ns/default/sa/you")
)

// rig is a pool and the peer that its tunnels lead to.
type rig struct {
	t     *testing.T
	pool  *pool.Pool
	peer  *hbonetest.Server
	mine  *svid.SVID
	dials atomic.Int32
}

func newRig(t *testing.T, change func(*pool.Config), settings ...http2.Setting) *rig {
	t.Helper()
	ca := identitytest.NewCA(t, "cluster.local")
	r := &rig{t: t, mine: ca.SVID(t, me.String())}
	r.peer = hbonetest.Listen(t, "127.0.0.1:0", mtls.Server(ca.SVID(t, you.String()), nil), settings...)
	cfg := pool.Config{}
	for range 2 {
		l, err := loop.New()
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(l.Run)
		t.Cleanup(func() {
			l.Close()
			wg.Wait()
		})
		cfg.Loops = append(cfg.Loops, l)
	}
	if change != nil {
		change(&cfg)
	}
	r.pool = pool.New(cfg)
	t.Cleanup(func() { r.pool.Close(pool.ErrClosed) })
	return r
}

func (r *rig) key() pool.Key {
	return pool.NewKey(me, []identity.ID{you}, "uid", netip.MustParseAddrPort(r.peer.Addr()))
}

func (r *rig) dial(ctx context.Context, cfg tunnel.Config) (*tunnel.Tunnel, any, error) {
	r.dials.Add(1)
	addr := netip.MustParseAddrPort(r.peer.Addr())
	fd, err := loop.TCPSocket(loop.Family(addr.Addr()))
	if err != nil {
		return nil, nil, err
	}
	if fd, err = loop.Connect(ctx, fd, addr); err != nil {
		return nil, nil, err
	}
	t, err := tunnel.Client(ctx, fd, mtls.Client(r.mine, []identity.ID{you}, nil), cfg)
	return t, "user", err
}

func (r *rig) get() (*pool.Conn, bool) {
	r.t.Helper()
	c, fresh, err := r.pool.Get(r.t.Context(), r.key(), r.dial)
	if err != nil {
		r.t.Fatal(err)
	}
	return c, fresh
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

// onLoop runs f on the tunnel's loop and waits for it.
func onLoop(c *pool.Conn, f func()) {
	done := make(chan struct{})
	c.Tunnel().Post(func() {
		defer close(done)
		f()
	})
	<-done
}

func TestReuse(t *testing.T) {
	r := newRig(t, nil)
	if c := r.pool.Take(r.key()); c != nil {
		t.Error("an empty pool gave a tunnel")
	}
	first, fresh := r.get()
	if !fresh || first.User != "user" || first.Key() != r.key() {
		t.Errorf("fresh is %t, user %v", fresh, first.User)
	}
	second, fresh := r.get()
	third := r.pool.Take(r.key())
	if fresh || second != first || third != first {
		t.Error("the tunnel is not shared")
	}
	for _, c := range []*pool.Conn{first, second, third} {
		c.Release()
	}
	if r.pool.Take(r.key()) != first {
		t.Error("an idle tunnel is not used again")
	}
	first.Release()
}

func TestKeysDoNotShare(t *testing.T) {
	r := newRig(t, nil)
	addr := netip.MustParseAddrPort(r.peer.Addr())
	keys := []pool.Key{
		r.key(),
		pool.NewKey(you, []identity.ID{you}, "uid", addr),
		pool.NewKey(me, []identity.ID{you, me}, "uid", addr),
		pool.NewKey(me, []identity.ID{me, you}, "uid", addr),
		pool.NewKey(me, nil, "uid", addr),
		pool.NewKey(me, []identity.ID{you}, "other", addr),
		pool.NewKey(me, []identity.ID{you}, "uid", netip.AddrPortFrom(addr.Addr(), 1)),
	}
	for i, key := range keys {
		if _, fresh, err := r.pool.Get(t.Context(), key, r.dial); err != nil || !fresh {
			t.Errorf("key %d: fresh %t, %v", i, fresh, err)
		}
	}
}

func TestOneDialForAllWhoWait(t *testing.T) {
	r := newRig(t, nil)
	release := make(chan struct{})
	slow := func(ctx context.Context, cfg tunnel.Config) (*tunnel.Tunnel, any, error) {
		<-release
		return r.dial(ctx, cfg)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, _, err := r.pool.Get(t.Context(), r.key(), slow); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	if n := r.dials.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
}

func TestFailureReachesAllWhoWait(t *testing.T) {
	r := newRig(t, nil)
	failure := errors.New("no route")
	release := make(chan struct{})
	var failing sync.WaitGroup
	for range 10 {
		failing.Go(func() {
			_, _, err := r.pool.Get(t.Context(), r.key(), func(context.Context, tunnel.Config) (*tunnel.Tunnel, any, error) {
				r.dials.Add(1)
				<-release
				return nil, nil, failure
			})
			if !errors.Is(err, failure) {
				t.Errorf("error is %v", err)
			}
		})
	}
	eventually(t, "dial", func() bool { return r.dials.Load() == 1 })
	// One that gives up early does not disturb the others.
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, context.Canceled)
	defer cancel()
	if _, _, err := r.pool.Get(ctx, r.key(), r.dial); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	close(release)
	failing.Wait()
	if _, fresh := r.get(); !fresh {
		t.Error("the pool did not try again")
	}
}

func TestStreamLimit(t *testing.T) {
	r := newRig(t, func(c *pool.Config) { c.MaxStreams = 2 })
	var conns []*pool.Conn
	for range 5 {
		c, _ := r.get()
		conns = append(conns, c)
	}
	if n := r.dials.Load(); n != 3 {
		t.Errorf("%d tunnels for 5 streams, 2 of which fit in one", n)
	}
	conns[0].Release()
	if c := r.pool.Take(r.key()); c != conns[0] && c != conns[4] {
		t.Error("a tunnel that was full is not used again")
	}
	// Who waits for a tunnel takes the stream that ends meanwhile.
	r.pool.Take(r.key())
	r.pool.Take(r.key())
	hang := make(chan struct{})
	got := make(chan *pool.Conn)
	go func() {
		c, _, err := r.pool.Get(t.Context(), r.key(), func(context.Context, tunnel.Config) (*tunnel.Tunnel, any, error) {
			<-hang
			return nil, nil, errors.New("too late")
		})
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	select {
	case <-got:
		t.Error("got a stream beyond the limit")
	case <-time.After(10 * time.Millisecond):
	}
	conns[2].Release()
	if c := <-got; c != conns[2] {
		t.Error("the freed stream went elsewhere")
	}
	close(hang)
}

func TestPeersLimitIsLearnt(t *testing.T) {
	r := newRig(t, nil, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	c, _ := r.get()
	eventually(t, "settings", func() (known bool) {
		onLoop(c, func() { known = c.Tunnel().PeerStreams() == 1 })
		return known
	})
	second, _ := r.get() // not known to the pool yet: 100 are assumed
	if second != c {
		t.Fatal("another tunnel already")
	}
	onLoop(c, func() {
		if _, err := c.Tunnel().Open(&h2.Header{Method: "CONNECT", Authority: "a:1"}, nil); err != nil {
			t.Error(err)
		}
		if _, err := c.Tunnel().Open(&h2.Header{Method: "CONNECT", Authority: "a:1"}, nil); !errors.Is(err, h2.ErrStreamLimit) {
			t.Errorf("error is %v", err)
		}
		c.Observe()
	})
	second.Release()
	if third, fresh := r.get(); third == c || !fresh {
		t.Error("no other tunnel at the peer's limit")
	}
}

func TestGoAwayLeavesThePool(t *testing.T) {
	r := newRig(t, nil)
	c, _ := r.get()
	r.peer.Peer(t, 1).GoAway(0, http2.ErrCodeNo)
	eventually(t, "removal", func() bool { return len(r.pool.Conns()) == 0 })
	if next, fresh := r.get(); next == c || !fresh {
		t.Error("the tunnel is used behind its GOAWAY")
	}
	c.Release()
}

func TestBrokenTunnelLeavesThePool(t *testing.T) {
	r := newRig(t, nil)
	r.get()
	r.peer.Peer(t, 1).Raw.Close()
	eventually(t, "removal", func() bool { return len(r.pool.All()) == 0 })
}

func TestIdleTunnelsAreDrained(t *testing.T) {
	r := newRig(t, func(c *pool.Config) { c.Idle = 30 * time.Millisecond })
	idle, _ := r.get()
	busy, _, err := r.pool.Get(t.Context(), pool.NewKey(me, []identity.ID{you}, "busy", netip.MustParseAddrPort(r.peer.Addr())), r.dial)
	if err != nil {
		t.Fatal(err)
	}
	idle.Release()
	eventually(t, "eviction", func() bool { return idle.Tunnel().Closed() })
	if busy.Tunnel().Closed() {
		t.Error("a busy tunnel was drained")
	}
	busy.Release()
	eventually(t, "eviction", func() bool { return len(r.pool.All()) == 0 })
}

// TestTunnelForEach has a tunnel made for each connection, at the same time, and ended with it.
func TestTunnelForEach(t *testing.T) {
	r := newRig(t, func(c *pool.Config) { c.MaxStreams, c.Idle = 1, -1 })
	const n = 8
	var under sync.WaitGroup // ends when all dials are under way
	under.Add(n)
	dial := func(ctx context.Context, cfg tunnel.Config) (*tunnel.Tunnel, any, error) {
		under.Done()
		under.Wait()
		return r.dial(ctx, cfg)
	}
	conns := make(chan *pool.Conn, n)
	for range n {
		go func() {
			c, fresh, err := r.pool.Get(t.Context(), r.key(), dial)
			if err != nil || !fresh {
				t.Errorf("got a tunnel that is fresh: %t, error %v", fresh, err)
			}
			conns <- c
		}()
	}
	seen := make(map[*pool.Conn]bool)
	for range n {
		if c := <-conns; c != nil {
			seen[c] = true
		}
	}
	if len(seen) != n {
		t.Errorf("%d connections share %d tunnels", n, len(seen))
	}
	for c := range seen {
		c.Release()
	}
	eventually(t, "end of the tunnels", func() bool { return len(r.pool.All()) == 0 })
}

func TestRetain(t *testing.T) {
	r := newRig(t, nil)
	c, _ := r.get()
	r.pool.Retain(func(k pool.Key) bool { return k == r.key() })
	if r.pool.Take(r.key()) == nil {
		t.Error("a tunnel that is wanted is gone")
	}
	r.pool.Retain(func(k pool.Key) bool { return k.UID() != "uid" })
	if r.pool.Take(r.key()) != nil {
		t.Error("a tunnel that is not wanted is still there")
	}
	r.peer.Peer(t, 1).WaitGoAway(t, 1)
	c.Release()
}

func TestDrain(t *testing.T) {
	r := newRig(t, nil)
	busy, _ := r.get()
	var st *tunnel.Stream
	onLoop(busy, func() {
		st, _ = busy.Tunnel().Open(&h2.Header{Method: "CONNECT", Authority: "a:1"}, nil)
	})
	empty := r.pool.Drain()
	select {
	case <-empty:
		t.Fatal("drained under a live stream")
	case <-time.After(10 * time.Millisecond):
	}
	late, _, err := r.pool.Get(t.Context(), pool.NewKey(me, []identity.ID{you}, "late", netip.MustParseAddrPort(r.peer.Addr())), r.dial)
	if err != nil {
		t.Fatalf("a connection on its way got no tunnel: %v", err)
	}
	late.Release()
	onLoop(busy, func() { st.Reset(h2.Cancel) })
	busy.Release()
	<-empty
	if !busy.Tunnel().Closed() || !late.Tunnel().Closed() {
		t.Error("tunnels are left")
	}
}

func TestClose(t *testing.T) {
	r := newRig(t, nil)
	c, _ := r.get()
	hung := make(chan error)
	go func() {
		_, _, err := r.pool.Get(t.Context(), pool.NewKey(me, nil, "hung", netip.AddrPort{}), func(ctx context.Context, _ tunnel.Config) (*tunnel.Tunnel, any, error) {
			<-ctx.Done()
			return nil, nil, context.Cause(ctx)
		})
		hung <- err
	}()
	eventually(t, "dial", func() bool { return r.dials.Load() == 1 })
	r.pool.Close(pool.ErrClosed)
	if err := <-hung; !errors.Is(err, pool.ErrClosed) {
		t.Errorf("a hung dial ended with %v", err)
	}
	if !c.Tunnel().Closed() {
		t.Error("the tunnel lives")
	}
	c.Release()
	if _, _, err := r.pool.Get(t.Context(), r.key(), r.dial); !errors.Is(err, pool.ErrClosed) {
		t.Errorf("a closed pool gave %v", err)
	}
	r.pool.Close(pool.ErrClosed)
}

// TestStress has many users of few keys, with tunnels that end under them.
func TestStress(t *testing.T) {
	r := newRig(t, func(c *pool.Config) { c.MaxStreams = 7 })
	stop := make(chan struct{})
	var killer, users sync.WaitGroup
	killer.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
			}
			if i%2 == 0 && r.peer.Peers() > 0 {
				r.peer.Peer(t, r.peer.Peers()).Raw.Close()
			}
			r.pool.Retain(func(pool.Key) bool { return i%3 != 0 })
		}
	})
	for u := range 40 {
		users.Go(func() {
			key := pool.NewKey(me, []identity.ID{you}, string(rune('a'+u%4)), netip.MustParseAddrPort(r.peer.Addr()))
			for range 50 {
				c := r.pool.Take(key)
				if c == nil {
					var err error
					if c, _, err = r.pool.Get(t.Context(), key, r.dial); err != nil {
						continue // its tunnel was killed
					}
				}
				if n := c.Tunnel().Streams(); n > 7 {
					t.Errorf("%d streams on one tunnel", n)
				}
				c.Release()
			}
		})
	}
	users.Wait()
	close(stop)
	killer.Wait()
}

func BenchmarkTake(b *testing.B) {
	ca := identitytest.NewCA(b, "cluster.local")
	server := hbonetest.Listen(b, "127.0.0.1:0", mtls.Server(ca.SVID(b, you.String()), nil))
	l, err := loop.New()
	if err != nil {
		b.Fatal(err)
	}
	go l.Run()
	defer l.Close()
	p := pool.New(pool.Config{Loops: []*loop.Loop{l}})
	defer p.Close(pool.ErrClosed)
	r := &rig{pool: p, peer: server, mine: ca.SVID(b, me.String())}
	c, _, err := p.Get(b.Context(), r.key(), r.dial)
	if err != nil {
		b.Fatal(err)
	}
	c.Release()
	addr := netip.MustParseAddrPort(server.Addr())
	b.ReportAllocs()
	for b.Loop() {
		p.Take(pool.NewKey(me, []identity.ID{you}, "uid", addr)).Release()
	}
}

// exhaust brings a tunnel to the end of its stream identifiers. On the loop.
func exhaust(t *tunnel.Tunnel) {
	session := reflect.ValueOf(t).Elem().FieldByName("h2").Elem()
	*(*uint32)(unsafe.Pointer(session.FieldByName("nextID").UnsafeAddr())) = 1<<31 + 1
}

// A tunnel whose stream identifiers are used up makes room for another one.
func TestStreamIdentifiersRunOut(t *testing.T) {
	r := newRig(t, nil)
	old, _ := r.get()
	onLoop(old, func() { exhaust(old.Tunnel()) })
	old.Release()
	for range 4 { // as proxy.outbound does: first attempt and maxAgain
		var err error
		c, _ := r.get()
		onLoop(c, func() {
			_, err = c.Tunnel().Open(&h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, ender{})
			c.Observe()
		})
		c.Release()
		if err == nil {
			return
		}
		t.Logf("the same tunnel: %t, %v", c == old, err)
	}
	t.Error("no new connection gets a stream any more")
}

type ender struct{}

func (ender) Response(*h2.Header, bool) {}
func (ender) Data([]byte, bool)         {}
func (ender) DataDone()                 {}
func (ender) Writable()                 {}
func (ender) Closed(error)              {}
