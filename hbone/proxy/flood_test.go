package proxy_test

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// TestManyRefusals has one tunnel carry far more refused requests than a peer may waste: a client that is denied, or whose
// application is down, is no attacker.
func TestManyRefusals(t *testing.T) {
	r := newRig(t)
	_, _, client, server := pair(r, nil)
	dst := r.echo(server.ip)
	keep := client.dial(dst)
	exchange(t, keep, "hello")
	r.policies.Apply([]*policy.Policy{{Namespace: "default", Name: "not-1", Scope: policy.Namespace, Action: policy.Deny, Rules: [][][]policy.Match{
		{{{DestinationPorts: []uint16{1}}}},
	}}}, nil)
	denied := netip.AddrPortFrom(dst.Addr(), 1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 150 {
				c := client.dial(denied)
				_, _ = c.Read(make([]byte, 1))
				c.Close()
			}
		})
	}
	wg.Wait()
	exchange(t, keep, "still")
}
