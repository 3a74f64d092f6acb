package proxy

import (
	"hash/maphash"
	"sync"
)

// loads counts the connections that this node has open to each workload, for choosing the least loaded. The zero value is
// ready.
type loads struct {
	once   sync.Once
	seed   maphash.Seed
	shards [16]loadShard
}

type loadShard struct {
	mu sync.Mutex
	by map[string]int
	_  [40]byte // own cache line
}

func (l *loads) shard(uid string) *loadShard {
	l.once.Do(func() { l.seed = maphash.MakeSeed() })
	return &l.shards[maphash.String(l.seed, uid)%uint64(len(l.shards))]
}

// of returns how many connections are open to the workload.
func (l *loads) of(uid string) int {
	s := l.shard(uid)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[uid]
}

// add counts a connection that begins or (n is -1) ends.
func (l *loads) add(uid string, n int) {
	s := l.shard(uid)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[string]int)
	}
	if s.by[uid] += n; s.by[uid] <= 0 {
		delete(s.by, uid)
	}
}
