package loop

// LargeBuffer is the size of the buffers of Loop.Get: 16 full TLS records and some room for control frames.
const LargeBuffer = 16*(5+16384+17) + 8192

// Sockets hold a buffer only while they have something to send. Of unused ones a loop keeps as many as one batch may need,
// so that a busy loop allocates none, and lets those go again, one at a time, when it is idle.
const (
	keepBusy = 32
	keepIdle = 8
)

// A peer that does not read has a tunnel keep its buffer. When manySending are kept, further ones are small, of one record
// and some control frames, so that all the tunnels that descriptors allow hold no more than 300 MiB.
const (
	SmallBuffer = 5 + 16384 + 17 + 1024
	manySending = 64
)

type bufferPool struct {
	free    [][]byte
	sending int // large buffers of GetSending
}

// GetSending returns a buffer of LargeBuffer bytes, or of SmallBuffer when many are out, with any content. It is given back
// with PutSending. On the loop.
func (l *Loop) GetSending() []byte {
	if l.buffers.sending >= manySending {
		return make([]byte, SmallBuffer)
	}
	l.buffers.sending++
	return l.Get()
}

// PutSending gives back a buffer of GetSending. On the loop.
func (l *Loop) PutSending(b []byte) {
	if cap(b) < LargeBuffer {
		return
	}
	l.buffers.sending--
	l.Put(b)
}

// Get returns a buffer of LargeBuffer bytes with any content. On the loop.
func (l *Loop) Get() []byte {
	p := &l.buffers
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		return b
	}
	return make([]byte, LargeBuffer)
}

// Put gives back a buffer of Get. On the loop.
func (l *Loop) Put(b []byte) {
	if len(l.buffers.free) < keepBusy {
		l.buffers.free = append(l.buffers.free, b[:LargeBuffer])
	}
}

// rest is called before the loop sleeps for longer.
func (p *bufferPool) rest() {
	if n := len(p.free); n > keepIdle {
		p.free[n-1] = nil
		p.free = p.free[:n-1]
	}
}
