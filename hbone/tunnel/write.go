package tunnel

import (
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/record"
)

// What stands around the payload of one DATA frame in a record of its own:
//
//	record header (5) | frame header (9) | payload … | content type (1) | tag (16)
const (
	before  = record.HeaderLen + h2.FrameHeaderLen
	around  = before + record.TrailerLen
	maxData = record.MaxPayload - h2.FrameHeaderLen
	// minSlot is the least payload room for which a record is begun, so that the end of a buffer is not cut into crumbs.
	minSlot = 1024
)

// mark has the tunnel flushed at the end of this batch of events.
func (t *Tunnel) mark() {
	if !t.dirty && t.err == nil {
		t.dirty = true
		t.loop.FlushLater(t)
	}
}

// Flush implements loop.Flusher: everything that this batch produced goes out in one write.
func (t *Tunnel) Flush() {
	t.dirty = false
	if !t.sends() {
		return
	}
	if len(t.h2.Out()) > 0 || t.rec.KeyUpdateDue() {
		t.buffer()
		t.sealControl()
	}
	t.write()
	t.open.Store(int32(t.h2.Streams()))
	switch {
	case !t.sends() || t.r < t.w:
	case len(t.h2.Out()) > 0 || t.rec.KeyUpdateDue(): // had no room behind what has just gone
		t.mark()
	case t.draining && !t.crossing && t.h2.Streams() == 0:
		t.finish()
	}
}

// finishing is how often a tunnel that has nothing more to say looks whether all of it has arrived.
const finishing = 10 * time.Millisecond

// finish ends a drained tunnel when the peer's host has all that was sent: should the peer say anything after the socket is
// closed, if only that it has read, the kernel resets the connection and drops the rest. A peer that is gone is found by the
// pings, but not one that sends and does not read: the wait is bounded.
func (t *Tunnel) finish() {
	now := t.loop.Now()
	if t.said == 0 {
		t.said = now
	}
	if t.fd.Unacknowledged() > 0 && now-t.said <= int64(t.cfg.PingInterval+t.cfg.PingTimeout) {
		t.loop.After(&t.grace, finishing, t.mark)
		return
	}
	t.fail(ErrClosed)
}

// sends reports whether there is a socket that may take something.
func (t *Tunnel) sends() bool { return t.err == nil && t.broken == nil && t.fd.Attached() }

// buffer makes sure that there is a buffer to seal into.
func (t *Tunnel) buffer() {
	if t.out == nil {
		t.out, t.r, t.w, t.took = t.loop.GetSending(), 0, 0, t.loop.Now()
	}
}

func (t *Tunnel) release() {
	if t.out != nil {
		clear(t.pieces[:cap(t.pieces)]) // they would keep the buffer from being collected
		t.loop.PutSending(t.out)
		t.out, t.r, t.w = nil, 0, 0
	}
}

// sealControl moves frames that wait in the session, and a KeyUpdate that is due, into the buffer. It reports whether
// all of them found room: DATA must not overtake them.
func (t *Tunnel) sealControl() bool {
	for {
		frames := t.h2.Out()
		if len(frames) == 0 {
			break
		}
		n := min(len(frames), record.MaxPayload, len(t.out)-t.w-record.HeaderLen-record.TrailerLen)
		if n <= 0 {
			return false
		}
		copy(t.out[t.w+record.HeaderLen:], frames[:n])
		t.w += t.rec.Seal(t.out[t.w:], n)
		t.h2.Sent(n)
	}
	if t.rec.KeyUpdateDue() {
		if t.w+record.ControlLen > len(t.out) {
			return false
		}
		b, err := t.rec.AppendKeyUpdate(t.out[:t.w], false)
		if err != nil {
			t.fail(err)
			return false
		}
		t.w = len(b)
	}
	return true
}

// write gives the kernel what is sealed. What it does not take stays until the socket is writable again.
func (t *Tunnel) write() {
	if t.blocked || t.r == t.w {
		if t.r == t.w {
			t.release()
			t.resumeLater()
		}
		return
	}
	n, err := t.fd.Write(t.out[t.r:t.w])
	switch {
	case err != nil && loop.Again(err):
		n = 0
	case err != nil:
		t.lost(err)
		return
	}
	if t.taken(n); t.blocked {
		return
	}
	t.release()
	t.resumeLater()
}

// lost is told by a write that the connection is gone. What the peer sent before still counts: it may say why, as one
// that refuses our certificate does, or be the rest of an answer. The reads that follow end the tunnel.
func (t *Tunnel) lost(err error) {
	t.broken = fmt.Errorf("%w: %w", ErrLost, err)
	t.readLater()
}

// taken notes that the socket took n bytes of what is sealed, and whether there are more.
func (t *Tunnel) taken(n int) {
	if n > 0 {
		t.r += n
		t.took = t.loop.Now()
	}
	if t.r < t.w {
		t.blocked = true
		t.fd.ArmWrite()
	}
}

// resumeLater has waiting streams resumed in the next round, behind the events that have come meanwhile.
func (t *Tunnel) resumeLater() {
	if len(t.waiting) > 0 && !t.resuming {
		t.resuming = true
		t.loop.RunLater((*resumer)(t))
	}
}

// resumer is the loop.Runner of resumeLater.
type resumer Tunnel

// Run implements loop.Runner.
func (r *resumer) Run() {
	r.resuming = false
	(*Tunnel)(r).resume()
}

// resume gives the streams that wait for room their turn, in the order in which they began to wait.
func (t *Tunnel) resume() {
	waiting := t.waiting
	if len(waiting) == 0 {
		return
	}
	t.waiting = nil
	for i, st := range waiting {
		if t.err != nil {
			return
		}
		st.waiting = false
		if st.s.Gone() {
			continue
		}
		if st.Handler != nil {
			st.Handler.Writable()
		}
		waiting[i] = nil
	}
	if t.waiting == nil {
		t.waiting = waiting[:0]
	}
}

func (t *Tunnel) wait(st *Stream) {
	if !st.waiting {
		st.waiting = true
		t.waiting = append(t.waiting, st)
	}
}

// room reports whether a DATA frame can be sealed now, after everything that has to go before it.
func (t *Tunnel) room() bool {
	if !t.sends() {
		return false
	}
	if t.out == nil {
		t.buffer()
		t.mark() // it is given back also when nothing comes of this
	}
	if t.fits() {
		return true
	}
	if t.err != nil || t.blocked {
		return false
	}
	n, err := t.fd.Write(t.out[t.r:t.w])
	if err != nil && !loop.Again(err) {
		t.lost(err)
		return false
	}
	if t.taken(max(n, 0)); t.blocked {
		return false
	}
	t.r, t.w = 0, 0
	return t.fits()
}

// fits seals what goes before DATA, and reports whether a frame of it has room behind that.
func (t *Tunnel) fits() bool { return t.sealControl() && t.w+around+minSlot <= len(t.out) }
