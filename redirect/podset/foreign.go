package podset

import (
	"fmt"
	"os"
	"strconv"
	"strings"

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

// searchForeign reports sockets in the pod that carry the agent's mark and are not
// the agent's. One has to be seen twice, because a socket of the agent may come or go
// between the two lists; it is reported once.
func (w *worker) searchForeign() {
	marked, err := w.s.cfg.MarkedSockets(w.e.pod.NS)
	if err != nil {
		w.s.cfg.Logger.Warn("searching for foreign sockets failed", "pod", w.e.pod.String(), "error", err)
		return
	}
	own := map[uint64]bool{}
	if len(marked) > 0 {
		if own, err = w.s.cfg.OwnSockets(); err != nil {
			w.s.cfg.Logger.Warn("searching for foreign sockets failed", "pod", w.e.pod.String(), "error", err)
			return
		}
	}
	seen := map[uint64]int{}
	var report []redirect.Socket
	for _, s := range marked {
		if own[s.Inode] {
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
