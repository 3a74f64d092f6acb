package netlab_test

import (
	"os/exec"
	"testing"
)

// TestRulesOfApplication: a pod whose application adds policy rules (wg-quick here, the CNI plugin sbr with Multus) is called
// through the mesh again as soon as the next audit was there.
func TestRulesOfApplication(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.mustCall(m.client, at(m.remote), "remote")
	held := m.hold(m.client, m.remote)
	if err := m.remote.Do(func() error {
		// Its own default route in a table of its own, the very same way out.
		return exec.Command("sh", "-ec", `ip route add default via 10.1.2.1 table 51820
			ip rule add not fwmark 51820 table 51820; ip rule add table main suppress_prefixlength 0`).Run()
	}); err != nil {
		t.Fatal(err)
	}
	m.wantMetric(m.b, "culvert_capture_repaired_total", 1)
	m.mustCall(m.client, at(m.remote), "remote")
	m.mustCall(m.client, at6(m.remote), "remote")
	m.mustCall(m.stranger, at(m.remote), "remote")
	m.mustCall(m.remote, at(m.client), "client")
	m.alive(held, "after the repair")
}
