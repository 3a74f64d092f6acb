package loop

// LargeBuffer is the size of the buffers of Loop.Get: 16 full TLS records and some room for control frames.
const LargeBuffer = 16*(5+16384+17) + 8192

// keepBuffers is how many unused buffers a loop keeps; sockets hold one only while they have something to send.
const keepBuffers = 8

type bufferPool struct{ free [][]byte }

// Get returns a buffer of LargeBuffer bytes with any content. On the loop.
func (l *Loop) Get() []byte {
	p := &l.buffers
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return make([]byte, LargeBuffer)
}

// Put gives back a buffer of Get. On the loop.
func (l *Loop) Put(b []byte) {
	if len(l.buffers.free) < keepBuffers {
		l.buffers.free = append(l.buffers.free, b[:LargeBuffer])
	}
}
