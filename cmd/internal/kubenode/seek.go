package kubenode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

// errNotFound says that no process of the pod is in a namespace that can be its own.
var errNotFound = errors.New("no process of the pod is running yet")

// seekWindow is how long the first who asks waits for others.
const seekWindow = 10 * time.Millisecond

// seeker looks for namespaces. A search reads all of /proc, so whoever asks during one shares the next: labelling a
// namespace of a hundred pods costs a few searches.
type seeker struct {
	finder   Finder
	log      *slog.Logger
	requests chan seekRequest
}

type seekRequest struct {
	uid    string
	addrs  []netip.Addr
	answer chan seekAnswer // capacity 1
}

type seekAnswer struct {
	ns  *netns.NS
	err error
}

func newSeeker(f Finder, log *slog.Logger) *seeker {
	return &seeker{finder: f, log: log, requests: make(chan seekRequest)}
}

// find returns the pod's namespace, which the caller owns.
func (s *seeker) find(ctx context.Context, uid string, addrs []netip.Addr) (*netns.NS, error) {
	r := seekRequest{uid, addrs, make(chan seekAnswer, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	a := <-r.answer // comes in any case
	return a.ns, a.err
}

// run searches until ctx ends.
func (s *seeker) run(ctx context.Context) {
	for {
		var batch []seekRequest
		select {
		case r := <-s.requests:
			batch = append(batch, r)
		case <-ctx.Done():
			return
		}
		window := time.NewTimer(seekWindow)
		for more := true; more; {
			select {
			case r := <-s.requests:
				batch = append(batch, r)
			case <-window.C:
				more = false
			}
		}
		s.search(ctx, batch)
	}
}

func (s *seeker) search(ctx context.Context, batch []seekRequest) {
	wanted := map[string]procns.Wanted{}
	for _, r := range batch {
		wanted[r.uid] = procns.Wanted{Addresses: r.addrs}
	}
	found, problems := s.finder.Find(ctx, wanted)
	for _, r := range batch {
		ns := found[r.uid]
		delete(found, r.uid)
		if ns != nil {
			r.answer <- seekAnswer{ns: ns}
			continue
		}
		var why []error
		for _, p := range problems {
			if p.UID == r.uid || p.UID == "" {
				why = append(why, p)
			}
		}
		if len(why) == 0 {
			why = []error{errNotFound}
		}
		r.answer <- seekAnswer{err: fmt.Errorf("find network namespace: %w", errors.Join(why...))}
	}
	for _, ns := range found { // asked for twice in a batch, which locks prevent
		_ = ns.Close()
	}
}
