package proxy

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestPenalties: three failures are free, from then on each doubles the wait, up to a bound; whoever was quiet for ten
// seconds is as good as any other.
func TestPenalties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &penalties{least: time.Second / 20}
		bad, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		next := func(peer netip.Addr, want time.Duration) {
			t.Helper()
			if d := p.turn(peer); d != want {
				t.Errorf("%v waits for %v, want %v", peer, d, want)
			}
			time.Sleep(want)
		}
		for range freeStrikes {
			p.strike(bad, 1)
			next(bad, 0)
		}
		for _, ms := range []time.Duration{50, 100, 200, 400, 800, 1600, 1600} {
			p.strike(bad, 1)
			next(bad, ms*time.Millisecond)
			next(other, 0)
		}
		time.Sleep(forgiven)
		next(bad, 0)
		p.strike(bad, 1)
		next(bad, 0)
	})
}

// TestPenaltyOfTunnels: of a peer's tunnels one may end by its fault, from the third on it waits as long as anybody does.
func TestPenaltyOfTunnels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &penalties{least: time.Second / 20}
		bad := netip.MustParseAddr("10.0.0.1")
		for _, want := range []time.Duration{0, 200 * time.Millisecond, 1600 * time.Millisecond} {
			p.strike(bad, thrownOut)
			if d := p.turn(bad); d != want {
				t.Errorf("the peer waits for %v, want %v", d, want)
			}
			time.Sleep(want)
		}
	})
}

// TestPenaltyQueue: connections of an offender that come at once begin one after the other, a penalty apart, and only so many
// wait.
func TestPenaltyQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &penalties{least: time.Second}
		bad := netip.MustParseAddr("10.0.0.1")
		p.strike(bad, freeStrikes+1)
		for n := range mostWaiting + 1 {
			if ok := p.queue(bad); ok != (n < mostWaiting) {
				t.Errorf("may connection %d wait: %t", n, ok)
			}
		}
		p.leave(bad)
		if !p.queue(bad) {
			t.Error("the place of one that has left is not free")
		}
		for n := range 4 {
			if d := p.turn(bad); d != time.Second {
				t.Errorf("connection %d waits for %v, want 1 s", n, d)
			}
			time.Sleep(time.Second)
			if d := p.turn(bad); d != 0 {
				t.Errorf("connection %d, a second later, waits for %v", n, d)
			}
		}
	})
}

// TestPenaltyCrowd: an offender whose turn has come does not wait for a place besides, and is told what it lacks.
func TestPenaltyCrowd(t *testing.T) {
	p := &Pod{proxy: &Proxy{penalties: penalties{least: time.Second}}}
	p.handshakes.init(1, nil)
	if _, err := p.handshakes.begin(t.Context(), netip.MustParseAddr("10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	bad := netip.MustParseAddr("10.0.0.1")
	p.proxy.penalties.strike(bad, freeStrikes+1)
	p.proxy.penalties.queue(bad)
	if hs, err := p.sitOut(0, -1, bad); hs != nil || !errors.Is(err, errCrowd) {
		t.Errorf("got %v, %v", hs, err)
	}
}

// TestPenaltyMemory: so many offenders are known at most, and of those who wait none is forgotten.
func TestPenaltyMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &penalties{least: time.Second}
		first := netip.MustParseAddr("10.0.0.1")
		p.strike(first, freeStrikes+1)
		if !p.queue(first) {
			t.Fatal("the first may not wait")
		}
		addr := first
		for range 2 * mostOffenders {
			time.Sleep(time.Millisecond)
			addr = addr.Next()
			p.strike(addr, 1)
		}
		if n := len(p.offenders); n > mostOffenders {
			t.Errorf("%d offenders are known, want %d at most", n, mostOffenders)
		}
		if p.offenders[first] == nil {
			t.Error("one that waits was forgotten")
		}
		if p.offenders[addr] == nil {
			t.Error("the last one is not known")
		}
	})
}
