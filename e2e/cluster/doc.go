// Package cluster holds the tests of Culvert in a real Kubernetes: `make e2e` builds everything, installs Culvert with its own
// `culvert install` and runs them. Without a cluster they fail; `make cluster` starts one on this machine.
//
// All tests share one cluster and one installation. Each makes namespaces of its own and removes them; what a test does to
// the installation it undoes. When a test fails it prints what the agents, the controller and the pods' namespaces say.
package cluster
