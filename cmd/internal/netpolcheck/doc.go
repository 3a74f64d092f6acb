// Package netpolcheck tells what a CNI that enforces NetworkPolicies would cut of the mesh, and what to add.
//
// Between two pods of the mesh a connection to any port travels as HBONE to TCP port 15008, so that is the port that the
// CNI sees. A rule that names the application's port and not 15008 therefore cuts what it allowed before. Check finds these
// rules and makes the patch: 15008 for the peers of the same rule, nobody else. Companion makes a second policy with the
// same effect for those who do not want theirs changed. Rules of ClusterNetworkPolicies are only reported: what they deny
// no NetworkPolicy can allow.
//
// Whatever else the mesh does is seen by the CNI as before: plaintext from outside of the mesh arrives at the
// application's port, the kubelet's probes come from the node's address, DNS questions go from the pod to its nameserver.
//
// Where something is not known (pods that no file shows, blocks of addresses that may or may not hold pods) the port is
// asked for: a policy that is wider by 15008, behind which the agents judge the real port by the same policies, is better
// than one that cuts.
//
// The package is pure: no I/O, no clock. Its functions change none of their arguments and may be called concurrently.
// Reading objects, printing and writing are left to the callers.
package netpolcheck

// Port is where peers accept HBONE.
const Port = 15008
