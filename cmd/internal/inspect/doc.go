// Package inspect looks at a cluster with Culvert in it, and at this machine, and says what it found: what is missing or
// wrong (Cluster, Machine), and who still speaks plaintext to whom (Plaintext).
//
// It changes nothing and asks only the API server, and through it the agents. What agents and objects say is foreign text:
// it is bounded and freed of control characters before it is shown. Printing is left to the callers. All functions may be
// called concurrently.
package inspect
