package telemetry

import (
	"sync"
	"sync/atomic"
)

// numShards spreads live connections over locks; a power of two below 256.
const numShards = 16

// flows is the set of live connections, in sharded lists whose links are in the
// connections themselves, so that joining and leaving allocates nothing.
type flows struct {
	next   atomic.Uint32
	shards [numShards]shard
}

type shard struct {
	mu    sync.Mutex
	first *Connection
	_     [48]byte // own cache line
}

func (f *flows) add(c *Connection) {
	c.shard = uint8(f.next.Add(1) % numShards)
	s := &f.shards[c.shard]
	s.mu.Lock()
	c.next = s.first
	if c.next != nil {
		c.next.prev = c
	}
	s.first = c
	s.mu.Unlock()
}

// remove takes the connection out and brings its series up to date.
func (f *flows) remove(c *Connection) {
	s := &f.shards[c.shard]
	s.mu.Lock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	c.fold()
	s.mu.Unlock()
}

// fold brings the series of all live connections up to date. Sums never go back:
// what was added for a connection is remembered in it, under its shard's lock.
func (f *flows) fold() {
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		for c := s.first; c != nil; c = c.next {
			c.fold()
		}
		s.mu.Unlock()
	}
}

// fold adds the bytes since the last fold to the series.
func (c *Connection) fold() {
	if c.Bytes == nil {
		return
	}
	received, sent := c.Bytes.Bytes()
	if received > c.received {
		c.series.received.Add(received - c.received)
		c.received = received
	}
	if sent > c.sent {
		c.series.sent.Add(sent - c.sent)
		c.sent = sent
	}
}
