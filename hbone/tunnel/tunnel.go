package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/record"
)

// Errors that end a tunnel, and with it its streams.
var (
	// ErrLost is a transport that broke; the error wraps the system's too.
	ErrLost = errors.New("tunnel lost")
	// ErrTruncated is a transport that ended without close_notify: what was in flight may be lost.
	ErrTruncated = errors.New("tunnel lost: connection ended without close_notify")
	// ErrPeerClosed is the peer's orderly end of the connection.
	ErrPeerClosed = errors.New("tunnel closed by peer")
	// ErrDead is a peer that has not answered pings.
	ErrDead = errors.New("tunnel lost: peer does not answer pings")
	// ErrUnread is a peer that sends but has read nothing for long.
	ErrUnread = errors.New("tunnel lost: peer does not read")
	// ErrClosed is this side's own end of the tunnel.
	ErrClosed = errors.New("tunnel closed")
)

// Config is what a tunnel needs besides its socket. Loop is required.
type Config struct {
	Loop *loop.Loop
	// H2 is what the session announces; Server is set by the role.
	H2 h2.Config
	// PingInterval is how long a tunnel is left alone before it is pinged; 0 means 10 s.
	PingInterval time.Duration
	// PingTimeout is how long it may be silent after a ping; 0 means 20 s.
	PingTimeout time.Duration
	// AnswerGrace is how long requests may go unanswered after the peer's GOAWAY; 0 means 2 s. Peers are known that take
	// a request that crosses their GOAWAY, count it as processed and never look at it. Those requests end like ones that
	// the peer says it has not processed, so that they can be made again elsewhere.
	AnswerGrace time.Duration
	// CrossingGrace is for how long after a peer has acknowledged the first GOAWAY of a drain its requests are still
	// taken; 0 means 200 ms. Its acknowledgement may overtake a request that it had decided on before (seen of ztunnel).
	CrossingGrace time.Duration
	// OnRequest gives a peer's request to a server, on the loop, when what came with the same read is known: one that was
	// taken back in it is never given. It sets Stream.Handler before it returns, or answers.
	OnRequest func(st *Stream, h *h2.Header)
	// OnDrain says that the peer, or this side's Drain, wants no further streams here. On the loop; may be nil.
	OnDrain func(t *Tunnel)
	// OnClose is called once, on the loop, when the tunnel is gone; its streams have been told before. May be nil.
	OnClose func(t *Tunnel, err error)
}

// Tunnel is an established HBONE connection.
type Tunnel struct {
	// Chain is the peer's certificate chain, leaf first.
	Chain []*x509.Certificate
	// Local and Remote are the ends of the TCP connection.
	Local, Remote netip.AddrPort
	// User is for the owner; it is set before the tunnel's first callback or never changed.
	User any

	cfg  Config
	loop *loop.Loop
	fd   loop.FD
	rec  *record.Conn
	h2   *h2.Session

	partial  []byte // start of a record that has not arrived wholly
	share    int    // by how many bits a read is smaller than the loop's buffer, see turn
	queued   bool   // in Loop.RunLater
	requests []request
	touched  []*Stream
	credited []*Stream // streams that have got credit again in this read
	renewed  uint64    // KeyUpdates of the peer that have been charged
	updates  int64     // when they are paid for

	out     []byte // ciphertext to send is out[r:w]; nil when there is none
	r, w    int
	blocked bool // the socket took less than it was given
	dirty   bool
	broken  error // the socket takes nothing any more, see lost
	pieces  []loop.Iovec

	waiting  []*Stream // streams that want to send: no room in out, or no credit of the connection
	resuming bool

	ping     loop.Timer
	grace    loop.Timer // of a GOAWAY, whoever sent it
	pinged   int64      // when the outstanding ping was sent, 0 when there is none
	heard    int64      // when a frame was complete last
	took     int64      // when the socket took bytes last, or had nothing to take
	draining bool
	leaving  bool  // the peer has sent GOAWAY
	crossing bool  // the first GOAWAY of a drain is on its way: requests that cross it are still served
	drained  bool  // the final GOAWAY is out
	said     int64 // when a drained tunnel had nothing more to send, 0 before
	err      error

	open   atomic.Int32
	closed atomic.Bool
}

// The pings that mean something to this side when they come back.
var (
	pingAlive = [8]byte{'a', 'l', 'i', 'v', 'e'}
	pingDrain = [8]byte{'d', 'r', 'a', 'i', 'n'}
)

// Client does a TLS handshake as the client on fd, a connected non-blocking socket that it owns from now on, and starts
// the tunnel on its loop. ctx bounds the handshake only. A peer that refuses our certificate may say so only after that:
// the tunnel then ends with a *record.Error that holds its alert.
func Client(ctx context.Context, fd int, config *tls.Config, cfg Config) (*Tunnel, error) {
	return start(ctx, fd, config, cfg, false, nil)
}

// Server does a TLS handshake as the server, as Client does as the client. ready, which may be nil, is called before the
// tunnel's first event and may refuse the peer by an error.
func Server(ctx context.Context, fd int, config *tls.Config, cfg Config, ready func(*Tunnel) error) (*Tunnel, error) {
	return start(ctx, fd, config, cfg, true, ready)
}

func start(ctx context.Context, fd int, config *tls.Config, cfg Config, server bool, ready func(*Tunnel) error) (*Tunnel, error) {
	t := &Tunnel{cfg: cfg, loop: cfg.Loop, Local: loop.LocalAddr(fd), Remote: loop.RemoteAddr(fd)}
	if t.cfg.PingInterval == 0 {
		t.cfg.PingInterval = 10 * time.Second
	}
	if t.cfg.PingTimeout == 0 {
		t.cfg.PingTimeout = 20 * time.Second
	}
	if t.cfg.AnswerGrace == 0 {
		t.cfg.AnswerGrace = 2 * time.Second
	}
	if t.cfg.CrossingGrace == 0 {
		t.cfg.CrossingGrace = 200 * time.Millisecond
	}
	fd, rec, state, err := handshake(ctx, fd, config, server)
	if err != nil {
		return nil, err
	}
	t.rec, t.Chain = rec, state.PeerCertificates
	cfg.H2.Server = server
	t.h2 = h2.NewSession(cfg.H2)
	if ready != nil {
		if err := ready(t); err != nil {
			loop.CloseFD(fd)
			return nil, err
		}
	}
	if !t.loop.Post(func() { t.attach(fd) }) {
		loop.CloseFD(fd)
		return nil, loop.ErrClosed
	}
	return t, nil
}

func (t *Tunnel) attach(fd int) {
	t.heard = t.loop.Now()
	if err := t.fd.Attach(t.loop, fd, t); err != nil {
		loop.CloseFD(fd)
		t.fail(err)
		return
	}
	if t.err != nil { // ended before
		t.fd.Close()
		return
	}
	// The first ping measures the round trip, which steers how windows grow.
	t.sendPing(pingAlive)
	t.mark()
}

// Loop returns the loop that the tunnel lives on.
func (t *Tunnel) Loop() *loop.Loop { return t.loop }

// Streams returns how many streams were open a moment ago. It may be called from anywhere.
func (t *Tunnel) Streams() int { return int(t.open.Load()) }

// Closed reports that the tunnel is gone. It may be called from anywhere.
func (t *Tunnel) Closed() bool { return t.closed.Load() }

// PeerStreams returns how many concurrent streams the peer allows. On the loop.
func (t *Tunnel) PeerStreams() uint32 {
	n, _ := t.h2.PeerStreams()
	return n
}

// Post has f called on the tunnel's loop; see loop.Loop.Post.
func (t *Tunnel) Post(f func()) bool { return t.loop.Post(f) }

// Event implements loop.Handler.
func (t *Tunnel) Event(ev loop.Events) {
	if ev.Writable() && t.blocked {
		t.blocked = false
		t.mark()
	}
	if ev.Readable() {
		t.read(ev.Ended())
	}
}

// Run implements loop.Runner: it goes on with reading where Event stopped to let others have their turn.
func (t *Tunnel) Run() {
	t.queued = false
	t.read(true)
}

// read takes one buffer from the socket. A read that fills it is followed by another in the next round; a short one
// means that the socket is empty, unless the peer has ended (drain), which only another read tells.
func (t *Tunnel) read(drain bool) {
	if !t.fd.Attached() {
		return
	}
	buf := t.loop.Buffer[:len(t.loop.Buffer)>>t.share]
	have := copy(buf, t.partial)
	n, err := t.fd.Read(buf[have:])
	switch {
	case t.broken != nil && (err != nil || n == 0):
		t.fail(t.broken)
		return
	case err != nil && loop.Again(err):
		return
	case err != nil:
		t.fail(fmt.Errorf("%w: %w", ErrLost, err))
		return
	case n == 0:
		t.fail(ErrTruncated)
		return
	}
	t.h2.Now = t.loop.Now()
	frames, work := t.h2.Frames(), t.h2.Work()
	err = t.consume(buf[:have+n])
	if t.h2.Frames() > frames {
		t.heard = t.h2.Now
	}
	full := n == len(buf)-have
	t.turn(t.h2.Work()-work, full)
	if err != nil {
		t.requests = nil // whoever made them is gone
	}
	t.deliver()
	if err != nil {
		t.fail(err)
		return
	}
	if drain || full || t.broken != nil {
		t.readLater()
	}
	t.settle()
}

func (t *Tunnel) readLater() {
	if !t.queued { // else each event of a busy socket would add a turn to those that it has
		t.queued = true
		t.loop.RunLater(t)
	}
}

func (t *Tunnel) consume(b []byte) error {
	for {
		n, err := record.Split(b)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		data, err := t.rec.Open(b[:n])
		if err == io.EOF {
			return ErrPeerClosed
		}
		if err != nil {
			return err
		}
		if len(data) == 0 {
			if err := t.chargeUpdates(); err != nil {
				return err
			}
		}
		if err := t.h2.Feed(data, (*events)(t)); err != nil {
			return err
		}
		if t.err != nil {
			return t.err
		}
		b = b[n:]
	}
	t.partial = append(t.partial[:0], b...)
	return nil
}

// A read of 256 KiB holds 16 frames of bulk data, or 20,000 of the smallest, which take as long as many reads of anything
// else, as long header lists do. Who sends such gets smaller turns, down to what still holds a whole record, until one of
// them is full and was no work: a short one tells nothing.
const (
	muchWork   = 1024 // frames, see h2.Session.Work
	littleWork = 128
	leastShare = 3
)

func (t *Tunnel) turn(work uint64, full bool) {
	switch {
	case work > muchWork:
		t.share = min(t.share+1, leastShare)
	case full && work < littleWork:
		t.share = 0
	}
}

// A peer may renew its key once a second, and 32 times in a row after a pause. Each time costs as much as opening a whole
// record, and whoever has a reason does it every 2^24 records or every hour (RFC 8446 section 5.5).
const (
	updateEvery = int64(time.Second)
	updateBurst = 32
)

// chargeUpdates refuses a peer that keeps this side busy with new keys.
func (t *Tunnel) chargeUpdates() error {
	n := t.rec.KeyUpdates()
	if n == t.renewed {
		return nil
	}
	t.renewed = n
	now := t.loop.Now()
	if t.updates = max(t.updates, now-updateBurst*updateEvery) + updateEvery; t.updates > now {
		return &record.Error{Alert: record.AlertUnexpectedMessage, Reason: "too many KeyUpdates"}
	}
	return nil
}

// deliver hands on the requests of this read, and lets the streams that got data or credit in it go on.
func (t *Tunnel) deliver() {
	t.ask()
	for i := 0; i < len(t.touched); i++ {
		st := t.touched[i]
		t.touched[i] = nil
		st.touched = false
		if st.Handler != nil {
			st.Handler.DataDone()
		}
	}
	t.touched = t.touched[:0]
	for i := 0; i < len(t.credited); i++ {
		st := t.credited[i]
		t.credited[i] = nil
		if st.Handler != nil && t.err == nil {
			st.Handler.Writable()
		}
	}
	t.credited = t.credited[:0]
}

// settle is called whenever something may have changed what is to be sent or how many streams there are.
func (t *Tunnel) settle() {
	if t.err != nil {
		return
	}
	n := t.h2.Streams()
	t.open.Store(int32(n))
	if len(t.h2.Out()) > 0 || t.rec.KeyUpdateDue() {
		t.mark()
	}
	if t.draining && n == 0 {
		t.mark()
	}
}

// Drain has the tunnel end when its streams have: the peer is told to open no more (RFC 9113 section 6.8). On the loop.
func (t *Tunnel) Drain() {
	if t.err != nil || t.draining {
		return
	}
	t.draining = true
	if t.cfg.OnDrain != nil {
		t.cfg.OnDrain(t)
	}
	if t.cfg.OnRequest == nil {
		t.h2.GoAway(true, h2.NoError, "")
		t.drained = true
	} else {
		// The peer learns it, and what it sent before it did still counts, before the last stream is named.
		t.h2.GoAway(false, h2.NoError, "")
		t.h2.Ping(pingDrain)
		t.crossing = true
	}
	t.settle()
	t.mark()
}

// Close ends the tunnel and all its streams at once. On the loop.
func (t *Tunnel) Close(err error) {
	if err == nil {
		err = ErrClosed
	}
	t.fail(err)
}

// fail ends the tunnel: the peer is told why as far as possible, then streams and owner are.
func (t *Tunnel) fail(err error) {
	if t.err != nil {
		return
	}
	t.err = err
	t.closed.Store(true)
	t.open.Store(0)
	t.deliver()
	t.loop.Stop(&t.ping)
	t.loop.Stop(&t.grace)
	t.farewell(err)
	t.fd.Close()
	t.release()
	t.partial, t.waiting = nil, nil
	t.h2.Each(func(s *h2.Stream) {
		if st := s.User.(*Stream); st.Handler != nil {
			st.lost = true
			st.Handler.Closed(err)
		}
	})
	if t.cfg.OnDrain != nil && !t.draining {
		t.cfg.OnDrain(t)
	}
	if t.cfg.OnClose != nil {
		t.cfg.OnClose(t, err)
	}
}

// farewell sends what is due before the socket closes: GOAWAY, then an alert.
func (t *Tunnel) farewell(err error) {
	if !t.fd.Attached() || t.broken != nil || errors.Is(err, ErrTruncated) || errors.Is(err, ErrDead) {
		return
	}
	alert := record.AlertCloseNotify
	var re *record.Error
	var ce *h2.ConnError
	switch {
	case errors.As(err, &re):
		if re.Remote {
			return
		}
		alert = re.Alert
	case errors.As(err, &ce), t.drained:
	default:
		t.h2.GoAway(true, h2.NoError, "")
	}
	t.buffer()
	t.sealControl()
	if t.w+record.ControlLen <= len(t.out) {
		t.w = len(t.rec.AppendAlert(t.out[:t.w], alert))
	}
	t.write()
}

func (t *Tunnel) sendPing(data [8]byte) {
	t.h2.Ping(data)
	t.pinged = t.loop.Now()
	t.loop.After(&t.ping, t.cfg.PingTimeout, t.onPing)
}

// onPing runs when a ping is due, or when one was not answered in time. Any whole frame of the peer counts as an answer:
// half a frame, drop by drop, does not keep a tunnel alive.
func (t *Tunnel) onPing() {
	if cap(t.partial) > 0 && len(t.partial) == 0 {
		t.partial = nil
	}
	switch {
	case t.pinged != 0 && t.heard < t.pinged:
		t.fail(ErrDead)
		return
	case t.r < t.w && t.loop.Now()-t.took > int64(t.cfg.PingInterval+t.cfg.PingTimeout):
		t.fail(ErrUnread)
		return
	}
	t.sendPing(pingAlive)
	t.mark()
}
