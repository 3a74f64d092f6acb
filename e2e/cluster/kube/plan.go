package kube

import "fmt"

// Addresses are from the range for benchmarks of networks (RFC 2544) where they appear on this machine.
const (
	hostLink     = "culvert-h0"
	hostAddr     = "198.18.251.1"
	hostPeer     = "198.18.251.2"
	hostNet      = "198.18.251.0/30"
	nodeNet      = "198.18.250.0/24"
	serviceNet   = "10.96.0.0/16,fd00:10:96::/112"
	podNet4      = "10.244.0.0/16"
	podNet       = podNet4 + ",fd00:10:244::/56"
	dnsAddr      = "10.96.0.10"
	apiPort      = "6443"
	pauseImage   = "culvert.test/pause:1"
	dnsImage     = "culvert.test/dns:1"
	clusterName  = "cluster.local"
	controlPlane = "node1"
	// WireInterface is the interface by which the nodes are joined, in both of them.
	WireInterface = "wire0"
)

// place is where a node stands in the plan of addresses.
type place struct {
	name   string
	number int
}

func places() []place { return []place{{"node1", 1}, {"node2", 2}} }

func (p place) addr() string     { return fmt.Sprintf("198.18.250.%d", p.number) }
func (p place) addr6() string    { return fmt.Sprintf("fd00:198:18:250::%d", p.number) }
func (p place) pods() string     { return fmt.Sprintf("10.244.%d.0/24", p.number) }
func (p place) pods6() string    { return fmt.Sprintf("fd00:10:244:%d::/64", p.number) }
func (p place) control() bool    { return p.name == controlPlane }
func apiServer() string          { return "https://" + places()[0].addr() + ":" + apiPort }
func (p place) other() place     { return places()[2-p.number] }
func (p place) user() string     { return "system:node:" + p.name }
func (p place) groups() []string { return []string{"system:nodes"} }
