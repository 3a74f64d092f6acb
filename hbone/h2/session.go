package h2

import (
	"encoding/binary"
	"math"
	"slices"
)

// Config says what a session announces. Zero fields take the defaults named.
type Config struct {
	Server        bool
	StreamWindow  uint32 // credit of a new stream in bytes; 65,535
	StreamCeiling uint32 // credit that a stream may grow to in bytes; 4 MiB
	ConnWindow    uint32 // credit of the connection in bytes; 16 MiB
	GrowBudget    int64  // sum in bytes by which all streams together may be above four times StreamWindow; 32 MiB
	MaxStreams    uint32 // server: concurrent streams that the peer may have open; 200
	MaxHeaderList uint32 // bytes (RFC 9113 section 6.5.2); 16 KiB for clients, 64 KiB for servers
}

func (c Config) withDefaults() Config {
	set := func(p *uint32, v uint32) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.StreamWindow, defaultWindow)
	set(&c.StreamCeiling, 4<<20)
	set(&c.ConnWindow, 16<<20)
	set(&c.MaxStreams, 200)
	if c.Server {
		set(&c.MaxHeaderList, 64<<10)
	} else {
		set(&c.MaxHeaderList, 16<<10)
	}
	if c.GrowBudget == 0 {
		c.GrowBudget = 32 << 20
	}
	c.StreamCeiling = max(c.StreamCeiling, c.StreamWindow)
	return c
}

// Events is told what Feed finds. The calls come on the goroutine of Feed; they may call back into the Session except
// for Feed. A stream that OnReset names is gone, and so is one whose both directions have ended.
type Events interface {
	// OnSettings follows each SETTINGS frame of the peer that is not an acknowledgement.
	OnSettings()
	// OnHeaders gives a request (server) or a final response (client); end says that no DATA follows.
	OnHeaders(st *Stream, h *Header, end bool)
	// OnData gives payload of a stream; p aliases the bytes given to Feed. end says that it was the last.
	OnData(st *Stream, p []byte, end bool)
	// OnWindow says that a stream has credit again; nil says that the connection has.
	OnWindow(st *Stream)
	// OnReset says that a stream was ended by the peer, or by this side for a fault of the peer (fault set).
	OnReset(st *Stream, code ErrCode, fault string)
	// OnGoAway gives the peer's GOAWAY; streams above last are given to OnReset with REFUSED_STREAM after it, so that who tries
	// again does not find this connection.
	OnGoAway(last uint32, code ErrCode, debug string)
	// OnPong answers Ping.
	OnPong(data [8]byte)
}

// Session is one end of an HTTP/2 connection. See NewSession.
type Session struct {
	cfg Config

	// Now is the time in nanoseconds of a monotonic clock, RTT the measured round trip in nanoseconds; the caller keeps
	// them. They steer the growth of windows and the budget of control frames, never correctness.
	Now, RTT int64

	out     []byte
	streams map[uint32]*Stream
	active  int    // streams that count against the stream limit of whoever opens them
	nextID  uint32 // client: next stream to open
	lastID  uint32 // server: highest stream that the peer opened

	sendWindow    int64 // the peer's credit to us, for the connection
	recvWindow    int64 // our credit to the peer
	recvOwed      int64 // received and not given back yet
	above         int64 // sum of what windows have beyond the sure size
	large         int   // streams that have
	lead          lead
	peerInitial   int64
	peerMaxFrame  int
	peerStreams   uint32
	settingsKnown bool
	tableUpdate   tableUpdate
	goneAway      bool   // the peer sent GOAWAY
	refuseAbove   uint32 // our final GOAWAY's last stream
	cut           cutStreams
	err           error

	parser parser
	block  blockReader
	budget budget
}

// tableUpdate says whether a peer that lowered its header table has been told that ours is empty, which RFC 7541 section
// 4.2 wants at the start of the next header block.
type tableUpdate uint8

const (
	tableUntold tableUpdate = iota
	tableOwed
	tableTold
)

// cutStreams remembers the streams that this side ended last while the peer could still send: what is on the way on them
// is late, not wrong (RFC 9113 section 5.1).
type cutStreams struct {
	ids [32]uint32
	at  uint8
}

func (c *cutStreams) add(id uint32) {
	c.ids[c.at] = id
	c.at = (c.at + 1) % uint8(len(c.ids))
}

func (c *cutStreams) has(id uint32) bool { return slices.Contains(c.ids[:], id) }

// maxOut bounds the control frames that wait for a peer that does not read.
const maxOut = 1 << 20

// NewSession returns a session whose Out holds its connection preface.
func NewSession(cfg Config) *Session {
	cfg = cfg.withDefaults()
	s := &Session{
		cfg: cfg, streams: make(map[uint32]*Stream), nextID: 1,
		sendWindow: defaultWindow, recvWindow: int64(cfg.ConnWindow),
		peerInitial: defaultWindow, peerMaxFrame: minMaxFrameSize, peerStreams: 100, refuseAbove: math.MaxUint32,
	}
	s.block.init(cfg.MaxHeaderList)
	s.parser.reset()
	if cfg.Server {
		s.parser.preface = len(Preface)
	} else {
		s.out = append(s.out, Preface...)
	}
	s.appendSettings()
	if extra := int64(cfg.ConnWindow) - defaultWindow; extra > 0 {
		s.appendWindowUpdate(0, extra)
	} else {
		s.recvWindow = defaultWindow
	}
	return s
}

func (s *Session) appendSettings() {
	at := len(s.out)
	s.out = appendFrameHeader(s.out, 0, frameSettings, 0, 0)
	put := func(id uint16, v uint32) {
		s.out = binary.BigEndian.AppendUint16(s.out, id)
		s.out = binary.BigEndian.AppendUint32(s.out, v)
	}
	put(settingHeaderTableSize, 0)
	if s.cfg.Server {
		put(settingMaxConcurrentStreams, s.cfg.MaxStreams)
	} else {
		put(settingEnablePush, 0)
	}
	put(settingInitialWindowSize, s.cfg.StreamWindow)
	put(settingMaxHeaderListSize, s.cfg.MaxHeaderList)
	putFrameHeader(s.out[at:], len(s.out)-at-FrameHeaderLen, frameSettings, 0, 0)
}

func (s *Session) appendWindowUpdate(stream uint32, n int64) {
	s.out = appendFrameHeader(s.out, 4, frameWindowUpdate, 0, stream)
	s.out = binary.BigEndian.AppendUint32(s.out, uint32(n))
}

func (s *Session) appendReset(stream uint32, code ErrCode) {
	s.cut.add(stream)
	s.out = appendFrameHeader(s.out, 4, frameRSTStream, 0, stream)
	s.out = binary.BigEndian.AppendUint32(s.out, uint32(code))
}

// Out holds the frames that have to be sent before any DATA that is written later. The caller sends a prefix of it and
// says so with Sent.
func (s *Session) Out() []byte { return s.out }

// Sent drops the first n bytes of Out.
func (s *Session) Sent(n int) {
	s.out = s.out[:copy(s.out, s.out[n:])]
	if len(s.out) == 0 {
		if cap(s.out) > 4096 {
			s.out = nil
		}
	}
}

// Frames returns how many frames have arrived wholly; a header block in several frames counts as one. It tells a peer that
// gets on from one that sends half a frame, drop by drop, for ever.
func (s *Session) Frames() uint64 { return s.parser.frames }

// Work is Frames with what large frames of control take to be looked at: 32 bytes of a header list count as a frame.
func (s *Session) Work() uint64 { return s.parser.frames + s.block.total>>5 }

// Streams returns how many streams are open.
func (s *Session) Streams() int { return len(s.streams) }

// Each calls f for every open stream, in no order. f may end the stream it is given.
func (s *Session) Each(f func(*Stream)) {
	for _, st := range s.streams {
		f(st)
	}
}

// PeerStreams returns how many concurrent streams the peer allows; known says that its SETTINGS have arrived.
func (s *Session) PeerStreams() (limit uint32, known bool) { return s.peerStreams, s.settingsKnown }

// GoingAway reports that the peer has sent GOAWAY or stream ids have run out: no stream can be opened any more.
func (s *Session) GoingAway() bool { return s.goneAway || s.nextID > maxStreamID }

// Ping puts a PING frame into Out.
func (s *Session) Ping(data [8]byte) {
	s.out = appendFrameHeader(s.out, 8, framePing, 0, 0)
	s.out = append(s.out, data[:]...)
}

// GoAway puts a GOAWAY frame into Out. With final set, streams that the peer opens above the highest one seen so far
// are refused from now on and named so; without it the peer is told to open no more (RFC 9113 section 6.8).
func (s *Session) GoAway(final bool, code ErrCode, debug string) {
	last := uint32(maxStreamID)
	if final {
		last = s.lastID
		s.refuseAbove = min(s.refuseAbove, last)
	}
	s.out = appendFrameHeader(s.out, 8+len(debug), frameGoAway, 0, 0)
	s.out = binary.BigEndian.AppendUint32(s.out, last)
	s.out = binary.BigEndian.AppendUint32(s.out, uint32(code))
	s.out = append(s.out, debug...)
}

// fail records a connection error and its GOAWAY once.
func (s *Session) fail(err error) error {
	if s.err == nil {
		s.err = err
		if ce, ok := err.(*ConnError); ok {
			s.GoAway(true, ce.Code, ce.Reason)
		}
	}
	return s.err
}

// budget limits frames that cost this side work and move nothing forward (PING, SETTINGS, empty DATA, early resets …).
type budget struct {
	spent int64
	since int64
}

const (
	budgetBurst   = 1000
	budgetPerUnit = 5_000_000 // one is given back every 5 ms
	// largeList is a header list so large that decoding it takes as long as many other frames, of 14 KiB some 50 µs. HBONE's
	// are of some hundred octets. Smaller ones cost as much when nothing comes of their request.
	largeList     = 4 << 10
	largeListCost = 5 // each KiB
	// patience is how long a peer has to wait for an answer for its reset to be free: it is no attack any more, because the
	// limit of streams bounds how many there are (2,000 a second, of 200 streams), and clients that give up are honest.
	patience = 100_000_000
)

func (b *budget) charge(now, units int64) bool {
	if b.spent == 0 {
		b.since = now
	}
	if back := (now - b.since) / budgetPerUnit; back > 0 {
		b.spent = max(0, b.spent-back)
		b.since += back * budgetPerUnit
	}
	b.spent += units
	return b.spent <= budgetBurst
}

func (b *budget) refund() { b.spent = max(0, b.spent-1) }

func (s *Session) charge(what string) error { return s.chargeFor(1, what) }

func (s *Session) chargeFor(units int64, what string) error {
	if !s.budget.charge(s.Now, units) {
		return connFault(EnhanceYourCalm, "too many "+what)
	}
	return s.unread()
}

// unread refuses a peer that has this side answer and does not read the answers.
func (s *Session) unread() error {
	if len(s.out) > maxOut {
		return connFault(EnhanceYourCalm, "peer does not read its control frames")
	}
	return nil
}
