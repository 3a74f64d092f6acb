package relay

import (
	"cmp"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
)

// ErrConnectTimeout is an application that has not accepted a connection in time.
var ErrConnectTimeout = errors.New("connect timed out")

// ErrLingered is an application that goes on without end although its peer's is gone.
var ErrLingered = errors.New("application did not end after its peer had gone")

// defaultLinger is Relay.Linger's.
const defaultLinger = 5 * time.Minute

const (
	// firstRead is what a connection is read with until it turns out to be a bulk one; it fills one record.
	firstRead = 16 << 10
	// turn is how much one connection may move before others get their turn.
	turn = 256 << 10
	// maxPieces bounds one gathered write; the kernel takes 1,024.
	maxPieces = 512
)

// Relay joins one application socket and one stream. It is the stream's tunnel.Handler. A Relay belongs to the loop of
// the stream's tunnel; everything but the counters is used there only.
//
//	        Connect / Start                both ended, or Abort
//	waiting ───────────────► relaying ───────────────────────► done
//	   │   (early data kept)                                    ▲
//	   └──── the stream ends first: answer(nil, err) or done ───┘
type Relay struct {
	// FromApp and ToApp count payload bytes read from and written to the application. They may be read from anywhere.
	FromApp, ToApp atomic.Int64
	// Linger is how long the application may do nothing at all when the peer has cancelled the stream; 0 means 5 minutes.
	// Such a relay counts against no limit of the peer any more, so that it must not last. It is also how long the peer has
	// for what an application sent that is gone. It is set before Serve.
	Linger time.Duration

	loop   *loop.Loop
	done   func(error)
	answer func(*h2.Header, error)
	st     *tunnel.Stream
	app    loop.FD

	pieces  []loop.Iovec // payload of this read that is to be written
	pending backlog      // payload that the application has not taken
	want    int          // how much the next read asks for

	connected func(error)
	timer     loop.Timer

	started   bool // bytes flow
	blocked   bool // the stream has no room; Writable goes on
	drain     bool // the application has ended its direction: read until its end is seen
	queued    bool // in Loop.RunLater
	appEnd    bool // the application's end was passed on
	remoteEnd bool // the peer has ended its direction
	finSent   bool // and the application was told
	orphan    bool // the stream is gone as if both directions had ended
	over      bool

	broken error // the application's socket is gone, see lost
}

// New returns a relay on l. done is called once, on the loop, when it is over: nil for an orderly end of both
// directions. It is not called for a relay that never got an application.
func New(l *loop.Loop, done func(error)) *Relay {
	return &Relay{loop: l, done: done, want: firstRead}
}

// Request opens a stream for the relay (client role). answer is called once, on the loop, with the response, whatever
// its status, or with the reason why there is none. An error of Request itself is that of Tunnel.Open; answer is not
// called then. On the loop.
func (r *Relay) Request(t *tunnel.Tunnel, head *h2.Header, answer func(*h2.Header, error)) error {
	st, err := t.Open(head, r)
	if err != nil {
		return err
	}
	r.st, r.answer = st, answer
	return nil
}

// Serve makes the relay the handler of a peer's request (server role). On the loop.
func (r *Relay) Serve(st *tunnel.Stream) { r.st, st.Handler = st, r }

// Stream returns the relay's stream, nil before Request or Serve.
func (r *Relay) Stream() *tunnel.Stream { return r.st }

// Start takes over the application's socket and begins to move bytes. On the loop.
func (r *Relay) Start(fd int) {
	if r.over {
		loop.AbortFD(fd)
		return
	}
	r.started = true
	if err := r.app.Attach(r.loop, fd, r); err != nil {
		loop.AbortFD(fd)
		r.abort(err)
		return
	}
	r.flush() // what came early; what the application has sent already is the first event
}

// Connect takes over a socket whose connect has been started and waits at most d for it. connected is called once, on
// the loop; when it returns, after nil, bytes begin to move. On the loop.
func (r *Relay) Connect(fd int, d time.Duration, connected func(error)) {
	if r.over {
		loop.CloseFD(fd)
		return
	}
	if err := r.app.AttachConnecting(r.loop, fd, r); err != nil {
		loop.CloseFD(fd)
		r.over = true
		connected(err)
		return
	}
	r.connected = connected
	r.loop.After(&r.timer, d, func() { r.connectDone(ErrConnectTimeout) })
}

func (r *Relay) connectDone(err error) {
	connected := r.connected
	r.connected = nil
	r.loop.Stop(&r.timer)
	if err != nil {
		r.over = true
		r.app.Close()
		connected(err)
		return
	}
	connected(nil)
	if r.over {
		return
	}
	r.started = true
	r.flush()
}

// Event implements loop.Handler for the application's socket.
func (r *Relay) Event(ev loop.Events) {
	if r.connected != nil {
		if !ev.Writable() {
			return
		}
		var err error
		if ev.Failed() {
			err = r.app.SocketError()
		}
		if r.connectDone(err); err != nil || r.over {
			return
		}
	}
	if ev.Failed() {
		if err := r.app.SocketError(); err != nil {
			r.lost(err)
			return
		}
	}
	if ev.Writable() && !r.pending.empty() {
		r.flush()
	}
	if ev.Readable() && !r.over {
		r.read(ev.Ended())
	}
}

// Run implements loop.Runner.
func (r *Relay) Run() {
	r.queued = false
	if !r.over {
		r.read(false)
	}
}

// read moves bytes from the application into the tunnel until one of them has had enough. The bytes are read right into
// the places in which they are sealed.
func (r *Relay) read(ended bool) {
	r.drain = r.drain || ended
	if !r.started || r.appEnd {
		return
	}
	if r.orphan {
		r.readOrphan()
		return
	}
	for moved := 0; ; {
		pieces := r.st.Reserve(r.want)
		if pieces == nil {
			r.blocked = true
			return
		}
		room := 0
		for i := range pieces {
			room += int(pieces[i].Len)
		}
		n, err := r.app.Readv(pieces)
		switch {
		case r.broken != nil && (err != nil || n == 0):
			r.abort(r.broken)
			return
		case err != nil && loop.Again(err):
			return
		case err != nil:
			r.abort(fmt.Errorf("application: %w", err))
			return
		case n == 0:
			r.appEnd = true
			r.st.End()
			r.finishIfDone()
			return
		}
		r.st.Commit(n)
		r.FromApp.Add(int64(n))
		if n < room {
			if n < r.want/4 {
				r.want = firstRead
			}
			if !r.drain {
				return
			}
			continue
		}
		r.want = min(2*r.want, turn)
		if moved += n; moved >= turn {
			r.later()
			return
		}
	}
}

// lost is told that the application's socket is gone. What the application sent before still counts, as it does without a
// mesh: a server that answers and ends before it has read the whole request resets the connection behind its answer. The
// reads that follow end the relay, at the latest when the peer has had its time to take all of it.
func (r *Relay) lost(err error) {
	err = fmt.Errorf("application: %w", err)
	if !r.started || r.appEnd || r.orphan {
		r.abort(err)
		return
	}
	r.broken, r.drain = err, true
	r.pieces = r.pieces[:0]
	r.pending.free(r.loop)
	r.loop.After(&r.timer, r.patience(), func() { r.abort(err) })
	r.later()
}

func (r *Relay) later() {
	if !r.queued {
		r.queued = true
		r.loop.RunLater(r)
	}
}

// readOrphan waits for the application's end when the peer takes nothing any more: data then is a broken pipe.
func (r *Relay) readOrphan() {
	n, err := r.app.Read(r.loop.Buffer[:1])
	switch {
	case err != nil && loop.Again(err):
	case err == nil && n == 0:
		r.appEnd = true
		r.finishIfDone()
	default:
		r.abort(nil)
	}
}

// Response implements tunnel.Handler.
func (r *Relay) Response(h *h2.Header, end bool) {
	answer := r.answer
	r.answer = nil
	if answer == nil {
		return
	}
	if end {
		r.remoteEnd = true
	}
	answer(h, nil)
}

// Data implements tunnel.Handler.
func (r *Relay) Data(p []byte, end bool) {
	if r.over || r.broken != nil {
		return
	}
	r.remoteEnd = r.remoteEnd || end
	switch {
	case len(p) == 0:
	case !r.started || !r.pending.empty():
		r.pending.add(r.loop, p, len(p))
	default:
		r.pieces = append(r.pieces, loop.Piece(p))
		if len(r.pieces) == maxPieces {
			r.DataDone()
		}
	}
}

// DataDone implements tunnel.Handler: what came goes to the application in one call.
func (r *Relay) DataDone() {
	if r.over {
		r.pieces = r.pieces[:0]
		return
	}
	if len(r.pieces) > 0 {
		n, err := r.app.Writev(r.pieces)
		if err != nil && !loop.Again(err) {
			r.lost(err)
			return
		}
		n = max(n, 0)
		r.keep(n)
		r.took(n)
	}
	r.endIfFlushed()
}

// keep copies what the application did not take of this read.
func (r *Relay) keep(n int) {
	left := -n
	for i := range r.pieces {
		left += int(r.pieces[i].Len)
	}
	for i := range r.pieces {
		b := loop.Bytes(&r.pieces[i])
		skip := min(n, len(b))
		n -= skip
		r.pending.add(r.loop, b[skip:], left)
	}
	clear(r.pieces)
	r.pieces = r.pieces[:0]
	if !r.pending.empty() {
		r.app.ArmWrite()
	}
}

func (r *Relay) took(n int) {
	if n > 0 {
		r.ToApp.Add(int64(n))
		r.st.Drained(n)
		if r.orphan {
			r.linger()
		}
	}
}

// linger begins to wait for an application whose peer is gone to take what it has been sent, and to end.
func (r *Relay) linger() {
	r.loop.After(&r.timer, r.patience(), func() { r.abort(ErrLingered) })
}

func (r *Relay) patience() time.Duration { return cmp.Or(r.Linger, defaultLinger) }

// flush writes what is pending.
func (r *Relay) flush() {
	if !r.pending.empty() {
		n, err := r.app.Write(r.pending.left)
		if err != nil && !loop.Again(err) {
			r.lost(err)
			return
		}
		n = max(n, 0)
		r.pending.took(r.loop, n)
		r.took(n)
		if !r.pending.empty() {
			r.app.ArmWrite()
			return
		}
	}
	r.endIfFlushed()
}

func (r *Relay) endIfFlushed() {
	if r.started && r.remoteEnd && !r.finSent && r.pending.empty() && !r.over {
		r.finSent = true
		if !r.appEnd { // else the close that comes now says it
			r.app.CloseWrite()
		}
		r.finishIfDone()
	}
}

// Writable implements tunnel.Handler.
func (r *Relay) Writable() {
	if r.blocked && !r.over {
		r.blocked = false
		r.read(false)
	}
}

// Closed implements tunnel.Handler. CANCEL and NO_ERROR read as the end of the peer's direction, because that is how
// ztunnel ends a stream whose application is gone (reference: h2 drops a stream handle with CANCEL).
func (r *Relay) Closed(err error) {
	if r.over {
		return
	}
	if answer := r.answer; answer != nil {
		r.answer = nil
		answer(nil, err)
		return
	}
	var reset *tunnel.ResetError
	cancelled := errors.As(err, &reset) && reset.Fault == "" && (reset.Code == h2.Cancel || reset.Code == h2.NoError)
	if cancelled && r.started && r.broken == nil {
		r.orphan, r.remoteEnd = true, true
		r.linger()
		r.endIfFlushed()
		if r.appEnd {
			r.finishIfDone()
		} else if !r.over {
			r.later()
		}
		return
	}
	r.abort(err)
}

// Abort ends the relay at once: the application and the peer see a reset. On the loop.
func (r *Relay) Abort(err error) { r.abort(err) }

func (r *Relay) abort(err error) {
	if r.over {
		return
	}
	r.over = true
	r.loop.Stop(&r.timer)
	r.connected, r.answer = nil, nil
	if r.st != nil {
		r.st.Reset(h2.ConnectError)
	}
	r.app.Abort()
	r.pending.free(r.loop)
	r.pieces = nil
	r.done(err)
}

func (r *Relay) finishIfDone() {
	if r.over || !r.appEnd || !r.finSent {
		return
	}
	r.over = true
	r.loop.Stop(&r.timer)
	r.app.Finish()
	r.pieces = nil
	r.done(nil)
}
