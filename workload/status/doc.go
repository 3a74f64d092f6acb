// Package status writes to the status of Kubernetes objects what became of
// them: the conditions, and the addresses of ServiceEntries, that a source of
// package kube computed.
//
// Only the leader runs a Writer. It writes by server-side apply, with one field
// manager for each kind of object, and only what differs from what is there. What
// fails is tried for ever, and what others undo is written again, each less and
// less often until the object or what is to be written changes. What that should
// be is not this package's business.
//
// Concurrency: Run blocks and may be called again after it has returned, but
// not twice at a time.
package status
