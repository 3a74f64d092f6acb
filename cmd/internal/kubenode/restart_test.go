package kubenode_test

import (
	"testing"
	"time"
)

// TestRestartIsQuick: an agent that can serve at once what an earlier one has enabled is ready then, and does not wait for
// the time that it would give a certificate.
func TestRestartIsQuick(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.process("u1", "10.0.0.2")
	r.pod("team/a", "u1", "10.0.0.2", func(o object) {
		o["metadata"].(object)["annotations"] = object{"ambient.istio.io/redirection": "enabled"}
	})
	r.run(nil)
	select {
	case <-r.agent.Ready():
	case <-time.After(10 * time.Second):
		t.Error("not ready, though everything is in place")
	}
}
