package procns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Wanted is what must be true of a pod's namespace.
type Wanted struct {
	// Addresses of the pod. The namespace must have one of them; without any it is
	// not looked for.
	Addresses []netip.Addr
}

// Problem is something that kept a namespace from being found or trusted.
type Problem struct {
	UID string // of the pod; empty where it concerns all
	PID int    // of the process, as the searched directory numbers it; zero where none is meant
	Err error
}

// Error says whom it concerns and why.
func (p Problem) Error() string {
	switch {
	case p.UID == "":
		return p.Err.Error()
	case p.PID == 0:
		return fmt.Sprintf("pod %s: %v", p.UID, p.Err)
	}
	return fmt.Sprintf("pod %s: process %d: %v", p.UID, p.PID, p.Err)
}

// Unwrap returns the cause.
func (p Problem) Unwrap() error { return p.Err }

// ErrNoAddress says that a namespace has none of the addresses of the pod.
var ErrNoAddress = errors.New("network namespace has none of the pod's addresses")

// Finder searches one /proc directory.
type Finder struct {
	root string
}

// New returns a Finder for a /proc directory, which in a container is where the
// host's is mounted: "/host/proc". Host says how the host's namespace is told there.
func New(root string) *Finder { return &Finder{root: root} }

// Find returns the namespaces of those wanted pods, by UID, that have one; the caller
// owns them. A pod that is not in the result has no process yet, or there is a
// Problem that says why its namespaces were refused. ctx ends a long search early:
// what was found so far is returned, with a Problem.
func (f *Finder) Find(ctx context.Context, wanted map[string]Wanted) (map[string]*netns.NS, []Problem) {
	if len(wanted) == 0 {
		return nil, nil
	}
	s := search{wanted: wanted, best: map[string]candidate{}, refused: map[string]map[netns.ID]Problem{}}
	if err := s.run(ctx, f.root); err != nil {
		s.problems = append(s.problems, Problem{Err: err})
	}
	found := make(map[string]*netns.NS, len(s.best))
	for uid, c := range s.best {
		found[uid] = c.ns
	}
	return found, s.all()
}

// Host opens the host's network namespace, by a /proc directory as New takes it: that
// of process 1 or, where nobody may look at that (some sandboxes protect their first
// process), that of the first kernel thread, which is the machine's. The caller owns it.
func Host(root string) (*netns.NS, error) {
	host, err := netns.Open(root + "/1/ns/net")
	if err == nil {
		return host, nil
	}
	err = fmt.Errorf("find the host's network namespace: %w", explain(err))
	p, openErr := openProcess(root, 2)
	if openErr != nil {
		return nil, err
	}
	defer p.close()
	if stat, readErr := p.read("stat"); readErr != nil || !isKernelThread(stat) {
		return nil, err
	}
	host, _, openErr = p.namespace()
	if openErr != nil {
		return nil, err
	}
	return host, nil
}

// candidate is a namespace that may be the one of a pod.
type candidate struct {
	ns      *netns.NS
	started uint64 // when the oldest process in it started, in clock ticks after boot
}

type search struct {
	wanted   map[string]Wanted
	host     netns.ID
	best     map[string]candidate // by UID
	refused  map[string]map[netns.ID]Problem
	problems []Problem
}

func (s *search) run(ctx context.Context, root string) error {
	host, err := Host(root)
	if err != nil { // without it the host's namespace could be taken for a pod's
		return err
	}
	s.host = host.ID()
	defer func() { _ = host.Close() }()
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return fmt.Errorf("search processes: %w", context.Cause(ctx))
		}
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 0 {
			continue
		}
		s.look(root, pid)
	}
	return nil
}

// look considers one process. One that ends meanwhile is no problem.
func (s *search) look(root string, pid int) {
	p, err := openProcess(root, pid)
	if err != nil {
		return
	}
	defer p.close()
	text, err := p.read("cgroup")
	if err != nil {
		return
	}
	uid, ok := podUID(text)
	if !ok {
		return
	}
	want, ok := s.wanted[uid]
	if !ok {
		return
	}
	ns, started, err := p.namespace()
	if err != nil {
		if !gone(err) {
			s.problems = append(s.problems, Problem{UID: uid, PID: pid, Err: explain(err)})
		}
		return
	}
	if !s.consider(uid, pid, want, candidate{ns: ns, started: started}) {
		_ = ns.Close()
	}
}

// consider reports whether it keeps c's namespace.
func (s *search) consider(uid string, pid int, want Wanted, c candidate) bool {
	id := c.ns.ID()
	if id == s.host {
		return false // the runtime's helper on its way, or a pod with hostNetwork
	}
	best, ok := s.best[uid]
	if ok && best.ns.ID() == id {
		best.started = min(best.started, c.started)
		s.best[uid] = best
		return false
	}
	if ok && best.started <= c.started {
		return false
	}
	if _, done := s.refused[uid][id]; done {
		return false
	}
	if err := hasAddress(c.ns, want.Addresses); err != nil {
		if s.refused[uid] == nil {
			s.refused[uid] = map[netns.ID]Problem{}
		}
		s.refused[uid][id] = Problem{UID: uid, PID: pid, Err: err}
		return false
	}
	if ok {
		_ = best.ns.Close()
	}
	s.best[uid] = c
	return true
}

// all returns the problems. That a process of a found pod is in some other namespace
// as well is none.
func (s *search) all() []Problem {
	for uid, ids := range s.refused {
		if _, found := s.best[uid]; found {
			continue
		}
		for _, p := range ids {
			s.problems = append(s.problems, p)
		}
	}
	slices.SortFunc(s.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.PID, b.PID))
	})
	return s.problems
}

// hasAddress returns nil if an interface of the namespace has one of the addresses.
func hasAddress(ns *netns.NS, wanted []netip.Addr) error {
	if len(wanted) == 0 {
		return errors.New("pod has no address yet to tell its namespace by")
	}
	var have []net.Addr
	err := ns.Do(func() error {
		var err error
		have, err = net.InterfaceAddrs()
		return err
	})
	if err != nil {
		return fmt.Errorf("read addresses of network namespace: %w", explain(err))
	}
	for _, a := range have {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := p.Addr().Unmap()
		if !addr.IsLoopback() && slices.ContainsFunc(wanted, func(w netip.Addr) bool { return w.Unmap() == addr }) {
			return nil
		}
	}
	return fmt.Errorf("%w: %v", ErrNoAddress, wanted)
}

// gone reports whether err says that the process has ended.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

// explain adds to a refusal what it takes.
func explain(err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (looking into another process's namespaces needs CAP_SYS_PTRACE, entering them CAP_SYS_ADMIN)", err)
	}
	return err
}
