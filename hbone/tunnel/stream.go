package tunnel

import (
	"fmt"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
)

// Handler gets the events of one stream, on the loop of its tunnel.
type Handler interface {
	// Response gives the answer to a request (client role); end says that nothing follows it.
	Response(h *h2.Header, end bool)
	// Data gives payload. p is valid until DataDone returns; end says that the peer has ended its direction. Payload
	// becomes credit for the peer only by Stream.Drained.
	Data(p []byte, end bool)
	// DataDone follows one or more calls of Data: everything that came with the same read has been given.
	DataDone()
	// Writable says that Stream.Reserve, after it found no room, is worth another try.
	Writable()
	// Closed says that the stream was ended by a reset (*ResetError) or with its tunnel. It is the last call. It does not
	// come when both directions have ended in order, nor after Stream.Reset.
	Closed(err error)
}

// ResetError is a stream that was reset.
type ResetError struct {
	Code h2.ErrCode
	// Fault says what the peer did wrong when this side reset the stream for it; empty when the peer reset it.
	Fault string
}

// Error implements error.
func (e *ResetError) Error() string {
	if e.Fault != "" {
		return fmt.Sprintf("stream ended with %s: %s", e.Code, e.Fault)
	}
	return "stream reset by peer: " + e.Code.String()
}

// Stream is one CONNECT of a tunnel. All methods are called on the loop.
type Stream struct {
	// Handler gets the stream's events.
	Handler Handler

	t       *Tunnel
	s       *h2.Stream
	waiting bool // for room in the tunnel, in Tunnel.waiting
	starved bool // for credit of its own
	touched bool
	asked   bool // a peer's request that the owner has not been told of: it and its data are in Tunnel.requests
	lost    bool
}

// Tunnel returns the tunnel that the stream belongs to.
func (st *Stream) Tunnel() *Tunnel { return st.t }

// Gone reports that nothing can be sent or received any more.
func (st *Stream) Gone() bool { return st.lost || st.s.Gone() }

// ID returns the HTTP/2 stream identifier.
func (st *Stream) ID() uint32 { return st.s.ID }

// Open sends a request (client role). The error is h2.ErrStreamLimit, h2.ErrGoingAway or what ended the tunnel; h gets
// no call then. On the loop.
func (t *Tunnel) Open(head *h2.Header, h Handler) (*Stream, error) {
	if t.err != nil {
		return nil, t.err
	}
	if t.draining {
		return nil, h2.ErrGoingAway
	}
	t.h2.Now = t.loop.Now()
	s, err := t.h2.Open(head)
	if err != nil {
		if t.h2.GoingAway() { // out of stream identifiers: the next request needs another tunnel
			t.Drain()
		}
		return nil, err
	}
	st := &Stream{Handler: h, t: t, s: s}
	s.User = st
	t.open.Store(int32(t.h2.Streams()))
	t.mark()
	return st, nil
}

// Respond answers a request (server role). With end set the exchange is over and the stream gone.
func (st *Stream) Respond(status int, fields []h2.Field, end bool) {
	if st.Gone() {
		return
	}
	st.t.h2.Respond(st.s, status, fields, end)
	st.t.settle()
}

// Reserve returns room for at most `most` bytes of payload, to be filled from the front and given to Commit before
// anything else is called on the tunnel. Nil means that there is none now; Writable says when to try again.
func (st *Stream) Reserve(most int) []loop.Iovec {
	t := st.t
	if st.Gone() {
		return nil
	}
	if st.s.StreamBlocked() {
		st.starved = true
		return nil
	}
	left := min(t.h2.Window(st.s), most)
	if left == 0 || !t.room() {
		t.wait(st)
		return nil
	}
	pieces := t.pieces[:0]
	for at := t.w; left > 0 && at+around+minSlot <= len(t.out); {
		n := min(maxData, left, len(t.out)-at-around)
		pieces = append(pieces, loop.Piece(t.out[at+before:at+before+n]))
		at += around + n
		left -= n
	}
	t.pieces = pieces
	return pieces
}

// Commit sends the first n bytes of what Reserve returned.
func (st *Stream) Commit(n int) {
	t := st.t
	for _, p := range t.pieces {
		if n <= 0 {
			break
		}
		m := min(n, int(p.Len))
		t.h2.DataHeader(t.out[t.w+5:], st.s, m, false)
		t.w += t.rec.Seal(t.out[t.w:], h2.FrameHeaderLen+m)
		n -= m
	}
	t.pieces = t.pieces[:0]
	t.mark()
}

// Write copies as much of p into the tunnel as there is room and returns how much that was; see Reserve.
func (st *Stream) Write(p []byte) int {
	sent := 0
	for sent < len(p) {
		pieces := st.Reserve(len(p) - sent)
		if len(pieces) == 0 {
			break
		}
		n := 0
		for i := range pieces {
			n += copy(loop.Bytes(&pieces[i]), p[sent+n:])
		}
		st.Commit(n)
		sent += n
	}
	return sent
}

// End ends the sending direction; what was committed before is sent first.
func (st *Stream) End() {
	if st.Gone() {
		return
	}
	st.t.h2.End(st.s)
	st.t.settle()
}

// Reset ends the stream at once; its Handler is not called any more.
func (st *Stream) Reset(code h2.ErrCode) {
	if st.Gone() {
		return
	}
	st.Handler = nil
	st.t.h2.Reset(st.s, code)
	st.t.settle()
}

// Drained says that n bytes of the stream's payload have left this process, or been dropped: the peer may send as much
// again.
func (st *Stream) Drained(n int) {
	if st.Gone() {
		return
	}
	st.t.h2.Now = st.t.loop.Now()
	st.t.h2.Drained(st.s, n)
	if len(st.t.h2.Out()) > 0 {
		st.t.mark()
	}
}
