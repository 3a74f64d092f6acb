package telemetry_test

import (
	"fmt"
	"testing"

	"github.com/culvert-mesh/culvert/workload/telemetry"
)

func TestPolicyMatches(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	c := outbound()
	c.Matches = []telemetry.PolicyMatch{{Policy: "ns/d", Effect: telemetry.WouldDeny}, {Policy: "ns/a", Effect: telemetry.Audited}}
	tel.Opened(c)
	tel.PolicyMatched(c)
	tel.PolicyMatched(c)
	text := scrape(t, tel, "culvert_policy_matches_total")
	for _, labels := range []string{`effect="audit",policy="ns/a"`, `effect="dry_run_deny",policy="ns/d"`} {
		if n := value(t, text, "culvert_policy_matches_total", labels); n != 2 {
			t.Errorf("%s is %v, want 2 before the connection ends", labels, n)
		}
	}
	// Policies come and go; not each leaves a series for ever.
	for i := range 2000 {
		tel.PolicyMatched(&telemetry.Connection{Matches: []telemetry.PolicyMatch{{Policy: fmt.Sprintf("ns/p%d", i)}}})
	}
	text = scrape(t, tel, "culvert_policy_matches_total")
	if n := value(t, text, "culvert_policy_matches_total", `policy="overflow"`); n != 1002 {
		t.Errorf("%v matches of policies beyond the limit, want 1002", n)
	}
}
