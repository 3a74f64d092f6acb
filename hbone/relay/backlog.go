package relay

import "github.com/culvert-mesh/culvert/hbone/loop"

// pooledFrom is the backlog for which a pooled buffer is worth its size.
const pooledFrom = 16 << 10

// backlog is payload that a socket has not taken. The zero backlog is empty and holds no memory.
type backlog struct {
	left   []byte // part of buf
	buf    []byte
	pooled bool
}

func (b *backlog) empty() bool { return len(b.left) == 0 }

// add copies p behind what is there; all says how much is about to be added in this and further calls.
func (b *backlog) add(l *loop.Loop, p []byte, all int) {
	if len(p) == 0 {
		return
	}
	if b.buf == nil && all > pooledFrom && all <= loop.LargeBuffer {
		b.buf, b.pooled = l.Get(), true
		b.left = b.buf[:0]
	}
	if b.pooled && len(b.left)+len(p) > cap(b.left) {
		grown := append(make([]byte, 0, 2*(len(b.left)+len(p))), b.left...)
		b.free(l)
		b.left = grown
	}
	b.left = append(b.left, p...)
	if !b.pooled {
		b.buf = b.left
	}
}

// took drops the first n bytes and, when that was all, the memory.
func (b *backlog) took(l *loop.Loop, n int) {
	if b.left = b.left[n:]; len(b.left) == 0 {
		b.free(l)
	}
}

func (b *backlog) free(l *loop.Loop) {
	if b.pooled {
		l.Put(b.buf)
	}
	*b = backlog{}
}
