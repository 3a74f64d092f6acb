package podset

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
)

// ownSockets returns the inodes of the sockets that this process holds.
func ownSockets() (map[uint64]bool, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list own sockets: %w", err)
	}
	own := map[uint64]bool{}
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue // closed meanwhile
		}
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64); err == nil {
			own[n] = true
		}
	}
	return own, nil
}

// ownAge is for how long a list of the agent's sockets is good, in parts of the time between two searches of a pod. What the
// agent has opened since looks foreign once, and is known when the pod is searched again.
const ownAge = 4

// ownList is a list of the agent's sockets that the pods share: it is as long as all of them have connections.
type ownList struct {
	mu      sync.Mutex
	sockets map[uint64]bool
	at      time.Time
}

// ownSockets returns the inodes of the agent's sockets as of a while ago. They are not changed.
func (s *Set) ownSockets() (map[uint64]bool, error) {
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	if s.own.sockets != nil && time.Since(s.own.at) < s.cfg.SocketAudit/ownAge {
		return s.own.sockets, nil
	}
	at := time.Now()
	sockets, err := s.cfg.OwnSockets()
	if err == nil {
		s.own.sockets, s.own.at = sockets, at
	}
	return sockets, err
}

// searchForeign reports sockets in the pod that carry the agent's mark and are not
// the agent's. One has to be seen twice, because a socket of the agent may come or go
// between the two lists; it is reported once.
func (w *worker) searchForeign() {
	marked, err := w.s.cfg.MarkedSockets(w.e.pod.NS)
	if err != nil {
		w.unsearched(err)
		return
	}
	own := map[uint64]bool{}
	if len(marked) > 0 {
		if own, err = w.s.ownSockets(); err != nil {
			w.unsearched(err)
			return
		}
	}
	w.blind = ""
	seen := map[uint64]int{}
	accepted := acceptedFrom(marked, own)
	var report []redirect.Socket
	for _, s := range marked {
		if own[s.Inode] || s.Protocol == "tcp" && accepted[ends{s.Local, s.Remote}] {
			continue
		}
		seen[s.Cookie] = min(w.foreign[s.Cookie]+1, 3)
		if seen[s.Cookie] == 2 {
			report = append(report, s)
		}
	}
	w.foreign = seen
	if len(report) > 0 {
		w.s.counters.foreign.Add(uint64(len(report)))
		w.event(Event{Kind: EventForeign, Sockets: report})
	}
}

type ends struct{ local, remote netip.AddrPort }

// acceptedFrom returns the other ends of the agent's connections. An application's have the mark from the agent with
// net.ipv4.tcp_fwmark_accept, which takes them past nothing.
func acceptedFrom(marked []redirect.Socket, own map[uint64]bool) map[ends]bool {
	accepted := map[ends]bool{}
	for _, s := range marked {
		if own[s.Inode] && s.Protocol == "tcp" && s.Remote.Port() != 0 {
			accepted[ends{s.Remote, s.Local}] = true
		}
	}
	return accepted
}

// yieldPause is how often a leaving pod is looked at in which another agent has connections.
const yieldPause = time.Second

// yield waits as long as another agent has connections in the pod, which the agents of before and after an upgrade do side by
// side: they need the rules, too. They have the time of those of this agent, and not longer than the whole set.
func (w *worker) yield(ctx context.Context) {
	pause := time.NewTicker(yieldPause)
	defer pause.Stop()
	for w.shared() {
		select {
		case <-pause.C:
		case <-w.e.drain.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// shared reports whether there are connections with the agent's mark that are not the agent's. In doubt there are none.
func (w *worker) shared() bool {
	marked, err := w.s.cfg.MarkedSockets(w.e.pod.NS)
	marked = slices.DeleteFunc(marked, func(s redirect.Socket) bool { return s.Remote.Port() == 0 })
	if err != nil || len(marked) == 0 {
		return false
	}
	own, err := w.s.ownSockets()
	return err == nil && slices.ContainsFunc(marked, func(s redirect.Socket) bool { return !own[s.Inode] })
}

// unsearched says why a search has failed, once for each reason: a kernel that cannot list sockets never does.
func (w *worker) unsearched(err error) {
	if text := err.Error(); text != w.blind {
		w.blind = text
		w.s.cfg.Logger.Warn("searching for foreign sockets failed", "pod", w.e.pod.String(), "error", err)
	}
}
