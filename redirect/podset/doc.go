// Package podset keeps the set of enrolled pods of a node: for each pod that should
// be captured it has a Runner's service running in the pod's namespace and the
// capture rules around it, and it keeps both so.
//
// The set is level-triggered. Add, Remove and Sync say what should be; one goroutine
// per pod makes it so, tries again after a failure, and looks after it from then on.
// A pod that fails is reported for itself and touches no other.
//
//	            Add, Sync                                   Remove, Sync
//	                │                                            │
//	                ▼                                            ▼
//	starting: Reserve ports ─► Runner.Start ─► Apply ─► enrolled ─► leaving: StopNew ─► stop (drain) ─► Delete
//	    ▲         │                              │       │   ▲
//	    └─ failed ◄──────────────────────────────┘       └───┘ audit: Verify, Repair
//
// Listeners are up before the rules and gone after them, so enrolling loses no
// connection and a half-done enrolment captures none. When the set itself ends, the
// rules stay by default: without its agent a pod's traffic is refused, not leaked,
// and a successor finds the pod as it was.
//
// A namespace has one pod at a time: its traffic has that pod's identity, so a second
// claim is an error of the second. A pod that is wanted again while it drains is
// enrolled at once: a new service takes the rules over, and the connections of the old
// one go on in the time that they were given.
//
// The package leaves to others how pods are found, what a Runner does, and what the
// rules are. All methods of Set may be called concurrently.
package podset
