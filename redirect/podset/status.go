package podset

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Pod is a pod with its network namespace. The UID is its key.
type Pod struct {
	UID, Name, Namespace, ServiceAccount string

	// Options are what is captured of this pod; nil means Config.Options. They are not
	// changed after the pod is given to the Set: another Add with other ones does that.
	Options *redirect.Options

	// NS belongs to the Set as soon as the pod is given to it.
	NS *netns.NS
}

// String returns "namespace/name".
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// State is how far a pod is.
type State string

// The states of a pod.
const (
	Starting State = "starting"
	Enrolled State = "enrolled" // service and rules are in place
	Failed   State = "failed"   // will be tried again
	Leaving  State = "leaving"
)

// Status is the state of one pod at one moment.
type Status struct {
	Pod   Pod // NS is nil: it is the Set's
	NetNS netns.ID
	State State
	Err   error // why it failed, or what is wrong with an enrolled pod; else nil
}

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventEnrolled EventKind = "enrolled"
	EventFailed   EventKind = "failed"   // Err says why; it is tried again
	EventRepaired EventKind = "repaired" // Findings were wrong and are right again, except Left
	EventDamaged  EventKind = "damaged"  // Findings are wrong and could not be repaired: Err; once for each such state
	EventForeign  EventKind = "foreign"  // Sockets carry the agent's mark and are not the agent's
	EventLeft     EventKind = "left"     // Err when something stayed behind
)

// Event is something that happened to a pod.
type Event struct {
	Kind     EventKind
	Pod      Pod // NS is nil
	Err      error
	Findings []redirect.Finding
	Left     []redirect.Finding
	Sockets  []redirect.Socket
}

// Stats are counts since the Set was made.
type Stats struct {
	Audits   uint64 // namespaces looked at
	Damaged  uint64 // of them, those that differed
	Repaired uint64 // of these, those that were put right
	Failures uint64 // failed attempts to enrol
	Foreign  uint64 // sockets with the agent's mark that were not the agent's
}

type counters struct {
	audits, damaged, repaired, failures, foreign atomic.Uint64
}

func (c *counters) stats() Stats {
	return Stats{
		Audits: c.audits.Load(), Damaged: c.damaged.Load(),
		Repaired: c.repaired.Load(), Failures: c.failures.Load(), Foreign: c.foreign.Load(),
	}
}

func sortStatuses(s []Status) {
	slices.SortFunc(s, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Pod.Namespace, b.Pod.Namespace), cmp.Compare(a.Pod.Name, b.Pod.Name),
			cmp.Compare(a.Pod.UID, b.Pod.UID))
	})
}
