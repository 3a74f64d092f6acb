// Package status writes to the status of Kubernetes objects what became of
// them: the conditions that a source of package kube computed.
//
// Only the leader runs a Writer. It writes by server-side apply, with one field
// manager for each kind of object, only conditions that differ from what is
// there, and each at most a few times until the object or its conditions
// change. What the conditions should be is not this package's business.
//
// Concurrency: Run blocks and may be called again after it has returned, but
// not twice at a time.
package status
