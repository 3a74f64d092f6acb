package telemetry_test

import (
	"bytes"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTelemetry returns a Telemetry that is closed when the test ends.
func newTelemetry(t testing.TB, cfg telemetry.Config) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Close() })
	return tel
}

// traffic is a ByteCounter.
type traffic struct{ received, sent atomic.Uint64 }

func (b *traffic) Bytes() (received, sent uint64) { return b.received.Load(), b.sent.Load() }

func moved(received, sent uint64) *traffic {
	b := new(traffic)
	b.received.Store(received)
	b.sent.Store(sent)
	return b
}

func client() *workload.Workload {
	return &workload.Workload{
		UID: "c1//Pod/ns1/client-abc", Name: "client-abc", Namespace: "ns1", TrustDomain: "td", ServiceAccount: "client",
		WorkloadName: "client", CanonicalName: "client-app", CanonicalRevision: "v1", ClusterID: "c1",
		Locality: workload.Locality{Region: "r1", Zone: "z1"},
	}
}

func server() *workload.Workload {
	return &workload.Workload{
		UID: "c1//Pod/ns2/server-xyz", Name: "server-xyz", Namespace: "ns2", TrustDomain: "td", ServiceAccount: "server",
		WorkloadName: "server", CanonicalName: "server-app", CanonicalRevision: "v2", ClusterID: "c1",
	}
}

func service() *workload.Service {
	return &workload.Service{Name: "server", Namespace: "ns2", Hostname: "server.ns2.svc.cluster.local"}
}

var clientID = identity.MustParse("spiffe://td/ns/ns1/sa/client")

// outbound is a complete connection as the source's agent sees it.
func outbound() *telemetry.Connection {
	return &telemetry.Connection{
		Direction: telemetry.Outbound,
		Security:  telemetry.MutualTLS,
		Source: telemetry.Peer{
			Addr: netip.MustParseAddrPort("10.0.0.1:40000"), Workload: client(), ID: clientID,
		},
		Destination: telemetry.Peer{Addr: netip.MustParseAddrPort("10.0.0.2:15008"), Workload: server()},
		HBONE:       "10.0.0.2:8080",
		Service:     service(),
		Start:       time.Now(),
		Bytes:       moved(100, 2000),
	}
}

// scrape returns the exposition, only the lines with one of the prefixes if given.
func scrape(t testing.TB, tel *telemetry.Telemetry, prefixes ...string) string {
	t.Helper()
	families, err := tel.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	if len(prefixes) == 0 {
		return b.String()
	}
	var out []string
	for line := range strings.Lines(b.String()) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "")
}
