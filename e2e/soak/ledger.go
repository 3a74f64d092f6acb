package main

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"
)

// ledger keeps the books: both ends of each connection report, the reports have to agree, and a connection that failed
// has to be excused by the death of one of its ends.
type ledger struct {
	mu       sync.Mutex
	open     map[uint64]*report   // reports in order whose other half has not come
	runs     []stint              // of the applications, for each pod the last one
	killed   map[instance]int64   // when, in nanoseconds since 1970
	kills    []death              // in order
	absent   map[absence][2]int64 // times between which an endpoint was out of a service, by name and pod
	pods     map[netip.Addr]int   // whose address
	members  map[string][]int     // pods that may be behind a target
	totals   totals
	failures []string
	failed   int
}

// absence names an endpoint of a service.
type absence struct {
	service string
	pod     int
}

// stint is the last run of a pod's application.
type stint struct {
	listening int64 // since when; 0 while it starts
	dead      int64 // when the run before was killed; 0 when there was none
}

// death is the time from the decision to kill an application to the end of its last socket: meanwhile the kernel may
// still accept connections for it.
type death struct {
	pod      int
	at, gone int64
}

// totals are what the run amounts to.
type totals struct {
	connections [kinds]int // that went through their script, as both ends say
	unmatched   int        // that one end says so about, and the other was killed before it could
	bytes       int64      // sent and received on the former, both directions
	excused     int        // cut short by the death of an end
	refused     int        // not established because of one
	orphans     int        // that a server saw and no client: an attempt that the client's agent gave up
}

// failuresKept is how many failures are described; all are counted.
const failuresKept = 20

func newLedger(pods int) *ledger {
	return &ledger{
		open: make(map[uint64]*report), runs: make([]stint, pods), killed: make(map[instance]int64),
		absent: make(map[absence][2]int64), pods: make(map[netip.Addr]int), members: make(map[string][]int),
	}
}

// kill notes the end of an application, just before it is killed.
func (l *ledger) kill(i instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UnixNano()
	l.killed[i] = now
	l.kills = append(l.kills, death{i.Pod, now, math.MaxInt64})
	l.runs[i.Pod] = stint{dead: now}
}

// gone notes that a killed application's sockets are closed.
func (l *ledger) gone(pod int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.kills {
		if k := &l.kills[i]; k.pod == pod && k.gone == math.MaxInt64 {
			k.gone = time.Now().UnixNano()
		}
	}
}

// listening notes that a pod's application serves.
func (l *ledger) listening(pod int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs[pod].listening = time.Now().UnixNano()
}

// leave notes that the agents have been told that an endpoint is out of a service, and join that it may be back.
func (l *ledger) leave(service string, pod int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.absent[absence{service, pod}] = [2]int64{time.Now().UnixNano(), 0}
}

func (l *ledger) join(service string, pod int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.absent[absence{service, pod}]; ok && a[1] == 0 {
		a[1] = time.Now().UnixNano()
		l.absent[absence{service, pod}] = a
	}
}

// leaveGrace is how long agents may take to hear of a change: they look at the file twice a second, on a busy machine.
const leaveGrace = 5 * time.Second

// add judges a report. Reports of an application that was killed may be missing, never wrong.
func (l *ledger) add(r *report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case r.Corrupt:
		l.failLocked(r, "corrupted")
	case r.Error != "":
		l.judgeLocked(r)
	default:
		l.matchLocked(r)
	}
	if a, ok := l.absent[absence{r.Target, r.Peer.Pod}]; ok && r.Client && r.Start > a[0]+int64(leaveGrace) && (a[1] == 0 || r.Start < a[1]) {
		l.failLocked(r, "went to an endpoint that had left the service")
	}
}

// matchLocked compares the reports of both ends.
func (l *ledger) matchLocked(r *report) {
	other := l.open[r.ID]
	if other == nil {
		l.open[r.ID] = r
		return
	}
	delete(l.open, r.ID)
	switch {
	case other.Client == r.Client:
		l.failLocked(r, "was reported twice by the same side")
	case r.Sent != other.Received || r.Received != other.Sent:
		l.failLocked(r, fmt.Sprintf("does not add up: the other end sent %d and received %d", other.Sent, other.Received))
	default:
		l.totals.connections[r.Kind]++
		l.totals.bytes += r.Sent + r.Received
	}
}

// judgeLocked looks for a death that explains a failure.
func (l *ledger) judgeLocked(r *report) {
	if at, ok := l.killed[r.Peer]; ok && at <= r.End {
		l.totals.excused++
		return
	}
	if r.Peer.Pod >= 0 {
		l.failLocked(r, "failed")
		return
	}
	if r.Client {
		if l.absentLocked(r) {
			l.totals.refused++
			return
		}
		l.failLocked(r, "was not established")
		return
	}
	pod, ok := l.podOf(r.Addr)
	switch {
	case !ok: // the visitor, who says nothing
	case l.diedLocked(pod, r.Start-int64(patience), r.End):
		l.totals.excused++
	case r.Received == 0:
		l.totals.orphans++
	default:
		l.failLocked(r, "failed")
	}
}

func (l *ledger) podOf(addr string) (pod int, ok bool) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 0, false
	}
	pod, ok = l.pods[ap.Addr().Unmap()]
	return pod, ok
}

func (l *ledger) diedLocked(pod int, from, to int64) bool {
	for i := len(l.kills) - 1; i >= 0; i-- {
		if k := l.kills[i]; k.pod == pod && k.gone >= from && k.at <= to {
			return true
		}
	}
	return false
}

// absentLocked reports whether the failure of a client that has not heard from a server is explained: an endpoint died
// meanwhile, or nobody was there. A dead endpoint beside live ones explains nothing: another one has to be tried.
func (l *ledger) absentLocked(r *report) bool {
	all := true
	for _, pod := range l.members[r.Target] {
		if l.diedLocked(pod, r.Start, r.End) {
			return true
		}
		if a, ok := l.absent[absence{r.Target, pod}]; ok && a[0] <= r.End && (a[1] == 0 || r.Start <= a[1]+int64(leaveGrace)) {
			continue // it was, or may have been, out of the service
		}
		n := l.runs[pod]
		served := n.listening != 0 && n.listening <= r.Start // this run, or
		if served || n.dead > r.End {                        // the one before
			all = false
		}
	}
	return all
}

func (l *ledger) failLocked(r *report, what string) {
	l.failed++
	if len(l.failures) >= failuresKept {
		return
	}
	side := "server"
	if r.Client {
		side = "client"
	}
	text := fmt.Sprintf("%s connection %x %s: as the %s %v says (peer %v, target %q %s, %v long, %d bytes sent, %d received): %s", r.Kind, r.ID, what,
		side, r.Self, r.Peer, r.Target, r.Addr, time.Duration(r.End-r.Start).Round(time.Millisecond), r.Sent, r.Received, r.Error)
	l.failures = append(l.failures, time.Unix(0, r.End).UTC().Format("15:04:05.000 ")+text)
}

// settle judges, when everything has ended, the connections that only one end reported.
func (l *ledger) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, r := range l.open {
		delete(l.open, id)
		if _, dead := l.killed[r.Peer]; dead {
			l.totals.unmatched++
			continue
		}
		l.failLocked(r, "is not known to its other end")
	}
}

// pending is how many connections one end has reported and the other has not.
func (l *ledger) pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, r := range l.open {
		if _, dead := l.killed[r.Peer]; !dead {
			n++
		}
	}
	return n
}

// sums returns the totals so far and what went wrong.
func (l *ledger) sums() (t totals, failed int, failures []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.totals, l.failed, l.failures
}
