package netlab_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestMarkOfAcceptedSockets: with net.ipv4.tcp_fwmark_accept what an application accepts has the mark of the packet that
// opened the connection, which is the agent's. Its answers have to come back to the agent all the same.
func TestMarkOfAcceptedSockets(t *testing.T) {
	t.Parallel()
	m := build(t)
	netnstest.Sysctl(t, m.remote.NS(), "net/ipv4/tcp_fwmark_accept", "1")
	m.start()
	m.mustCall(m.client, at(m.remote), "remote")
	m.mustCall(m.client, at6(m.remote), "remote")
	m.mustCall(m.stranger, at(m.remote), "remote")
}
