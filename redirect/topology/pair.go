package topology

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/redirect/link"
)

// Pair is two pods joined by one cable, without nodes or bridges between them. Each sends what it knows no other way
// for to the other, so addresses of services need no route of their own.
type Pair struct {
	A, B     *Pod
	topology *Topology
}

// NewPair builds two pods with the given names, both served by the congestion control algorithm ("" for the machine's
// default). On error nothing is left behind.
func NewPair(a, b, congestionControl string) (*Pair, error) {
	t, err := empty(Config{CongestionControl: congestionControl})
	if err != nil {
		return nil, err
	}
	p := &Pair{topology: t}
	if err := p.build(a, b); err != nil {
		return nil, errors.Join(fmt.Errorf("build pair: %w", err), t.Close())
	}
	return p, nil
}

func (p *Pair) build(a, b string) error {
	plans := [2]plan{planOf(1), planOf(2)}
	var pods [2]*Pod
	var ends [2]link.End
	for i, name := range []string{a, b} {
		s, err := p.topology.newSpace(name)
		if err != nil {
			return err
		}
		pods[i] = &Pod{space: s, addr: plans[i].wire4.Addr(), six: plans[i].wire6.Addr()}
		ends[i] = link.End{NS: s.ns, Name: PodInterface, Addrs: []netip.Prefix{plans[i].wire4, plans[i].wire6}}
	}
	if err := link.Join(ends[0], ends[1]); err != nil {
		return err
	}
	for i, pod := range pods {
		peer := pods[1-i]
		err := pod.ns.Do(func() error {
			return errors.Join(link.AddRoute(default4, peer.addr), link.AddRoute(default6, peer.six))
		})
		if err != nil {
			return fmt.Errorf("route from %s: %w", pod.name, err)
		}
	}
	p.A, p.B = pods[0], pods[1]
	return nil
}

// Dir is a directory for files of the pair's user, removed by Close.
func (p *Pair) Dir() string { return p.topology.Dir() }

// Close kills the processes started in the pods, waits for them, and gives up both namespaces.
func (p *Pair) Close() error { return p.topology.Close() }
