package proxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// A connection costs its peer nothing until it has proven who it is, so what may be unproven is bounded: Config's
// MaxHandshakes for a pod, a quarter of that for one address, and a time when others wait.
const (
	// addressShare is the part of the handshakes that one address may have under way. A pod has one or two addresses, and
	// whoever shares tunnels as we do needs one handshake at a time.
	addressShare = 4
	// crowdedTime is what a handshake has when all places are taken and somebody waits for one. It takes a few milliseconds,
	// and less than this also where hundreds of honest peers come at once to a node of two cores.
	crowdedTime = time.Second
)

var (
	errAddressCrowd = errors.New("too many handshakes with this address are under way")
	errCrowd        = &tunnel.HandshakeError{Err: errors.New("peer has failed too often, and too many handshakes are under way")}
	errGaveWay      = errors.New("handshake took too long while others waited")
	errPenalty      = &tunnel.HandshakeError{Err: errors.New("peer has failed too often and comes back too soon")}
	// errImpatient is no strike: whoever shares an offender's address and gives up, because of its wait, has done nothing.
	errImpatient = &tunnel.HandshakeError{Err: errors.New("peer has failed too often, had to wait and gave up")}
)

// handshakes are those of one pod's inbound listener.
type handshakes struct {
	most    int
	stopped <-chan struct{}

	mu    sync.Mutex
	by    map[netip.Addr]int
	first []*handshake  // in the order in which they began
	free  chan struct{} // of size 1: a place may have become free
}

// handshake is one of them.
type handshake struct {
	addr   netip.Addr
	began  time.Time
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (h *handshakes) init(most int, stopped <-chan struct{}) {
	h.most, h.stopped = most, stopped
	h.by, h.free = make(map[netip.Addr]int), make(chan struct{}, 1)
}

// begin takes a place for a peer, whose handshake is to end with the returned one's ctx. It waits for a place, and has
// those that take too long give way, but it does not wait for a peer that has its share of places. One goroutine may call
// it at a time.
func (h *handshakes) begin(parent context.Context, peer netip.Addr) (*handshake, error) {
	for {
		hs, wait, err := h.try(parent, peer)
		if hs != nil || err != nil {
			return hs, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-h.free:
		case <-timer.C:
		case <-h.stopped:
			timer.Stop()
			return nil, ErrDrain
		}
		timer.Stop()
	}
}

// try takes a place, or says how long to wait for one at most.
func (h *handshakes) try(parent context.Context, peer netip.Addr) (*handshake, time.Duration, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by[peer] >= max(1, h.most/addressShare) {
		return nil, 0, &tunnel.HandshakeError{Err: errAddressCrowd}
	}
	now := time.Now()
	if len(h.first) >= h.most {
		for _, old := range h.first {
			if left := crowdedTime - now.Sub(old.began); left > 0 {
				return nil, left, nil
			}
			if old.ctx.Err() == nil {
				old.cancel(errGaveWay)
				return nil, crowdedTime, nil // until it has noticed
			}
		}
		return nil, crowdedTime, nil
	}
	hs := &handshake{addr: peer, began: now}
	hs.ctx, hs.cancel = context.WithCancelCause(parent)
	h.first = append(h.first, hs)
	h.by[peer]++
	return hs, 0, nil
}

// end gives the place back.
func (h *handshakes) end(hs *handshake) {
	hs.cancel(nil)
	h.mu.Lock()
	if i := slices.Index(h.first, hs); i >= 0 {
		h.first = slices.Delete(h.first, i, i+1)
	}
	if h.by[hs.addr]--; h.by[hs.addr] == 0 {
		delete(h.by, hs.addr)
	}
	h.mu.Unlock()
	select {
	case h.free <- struct{}{}:
	default:
	}
}
