// Package route decides where a connection goes.
//
// Make answers for the client's side: given the calling workload, the address
// it dialled and one Snapshot of the Store, it returns a Plan: pass through,
// or an ordered list of targets to try with everything needed to reach each,
// or a refusal with its reason. Inbound answers for the server's side: which
// local address a CONNECT request leads to.
//
// Both are pure: they hold no state, do no I/O and read no clock. What changes
// from call to call, the load of endpoints and the dice, comes in the Input.
// Dialling, resolving host names and remembering who failed are the caller's.
package route
