package netlab_test

import (
	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// wantNoRules checks that nothing of the capture is left in a pod.
func (m *mesh) wantNoRules(p *netlab.Pod) {
	m.t.Helper()
	if have, err := nft.Read(p.NS()); err != nil || have != nil {
		m.t.Errorf("rules left in %s: %s, %v", p.Name(), have.Text(), err)
	}
}
