package telemetry_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

func TestNewRefusesBadConfig(t *testing.T) {
	_, err := telemetry.New(telemetry.Config{AccessFormat: "xml", MaxSeries: -1})
	const want = "configure telemetry: access log format \"xml\" is neither \"text\" nor \"json\"\na limit is negative"
	if err == nil || err.Error() != want {
		t.Errorf("error is %v, want %q", err, want)
	}
}

func TestBuildInfo(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{Version: "1.2.3"})
	got := scrape(t, tel, "istio_build", "culvert_build_info")
	if !strings.Contains(got, `istio_build{component="culvert-node",tag="1.2.3"} 1`) ||
		!strings.Contains(got, `revision="unknown",version="1.2.3"} 1`) {
		t.Errorf("build metrics are\n%s", got)
	}
}

func TestDNS(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	var w *workload.Workload
	o := tel.DNS(func() *workload.Workload { return w })
	o.Query("A", "udp", false, false, 0)
	w = client()
	o.Query("AAAA", "udp", true, false, 2*time.Millisecond)
	o.Query("AAAA", "udp", true, true, 6*time.Second)
	o.Query("TYPE4711", "tcp", true, false, time.Millisecond)
	o.Query("TYPE4712", "tcp", true, false, time.Millisecond)
	want := `istio_dns_requests_total{request_protocol="tcp",request_query_type="other",source_canonical_revision="v1",source_canonical_service="client-app"} 2
istio_dns_requests_total{request_protocol="udp",request_query_type="A",source_canonical_revision="unknown",source_canonical_service="unknown"} 1
istio_dns_requests_total{request_protocol="udp",request_query_type="AAAA",source_canonical_revision="v1",source_canonical_service="client-app"} 2
istio_dns_upstream_failures_total{request_protocol="udp",request_query_type="AAAA",source_canonical_revision="v1",source_canonical_service="client-app"} 1
istio_dns_upstream_requests_total{request_protocol="tcp",request_query_type="other",source_canonical_revision="v1",source_canonical_service="client-app"} 2
istio_dns_upstream_requests_total{request_protocol="udp",request_query_type="AAAA",source_canonical_revision="v1",source_canonical_service="client-app"} 2
`
	got := scrape(t, tel, "istio_dns_requests", "istio_dns_upstream_requests_total", "istio_dns_upstream_failures")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("exposition (-want +got):\n%s", d)
	}
	durations := scrape(t, tel, `istio_dns_upstream_request_duration_seconds_bucket{request_protocol="udp"`)
	for _, bucket := range []string{`le="0.001"} 0`, `le="0.01"} 1`, `le="5"} 1`, `le="+Inf"} 2`} {
		if !strings.Contains(durations, bucket) {
			t.Errorf("no %s in\n%s", bucket, durations)
		}
	}
}

func TestXDSAndCRLAndOnDemand(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	x := tel.XDS()
	x.Terminated("Reconnect")
	x.Message("type.googleapis.com/istio.workload.Address", 100)
	x.Message("type.googleapis.com/istio.workload.Address", 23)
	tel.CRLRejected(telemetry.Inbound)
	tel.CRLUntracked(telemetry.Outbound)
	tel.OnDemandDNS(client(), "example.com")
	tel.OnDemandDNS(nil, "")
	want := `istio_crl_policy_rejections_total{reporter="destination"} 1
istio_crl_untracked_connections_total{reporter="source"} 1
istio_on_demand_dns_total{hostname="example.com",source_app="client-app",source_canonical_revision="v1",source_canonical_service="client-app",source_cluster="c1",source_principal="unknown",source_version="v1",source_workload="client",source_workload_namespace="ns1"} 1
istio_on_demand_dns_total{hostname="unknown",source_app="unknown",source_canonical_revision="unknown",source_canonical_service="unknown",source_cluster="unknown",source_principal="unknown",source_version="unknown",source_workload="unknown",source_workload_namespace="unknown"} 1
istio_xds_connection_terminations_total{reason="Reconnect"} 1
istio_xds_message_bytes_total{url="type.googleapis.com/istio.workload.Address"} 123
istio_xds_message_total{url="type.googleapis.com/istio.workload.Address"} 2
`
	if d := cmp.Diff(want, scrape(t, tel, "istio_crl", "istio_on_demand", "istio_xds")); d != "" {
		t.Errorf("exposition (-want +got):\n%s", d)
	}
}

func TestCertificates(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{Certificates: func() []telemetry.Certificate {
		return []telemetry.Certificate{
			{Identity: clientID, NotAfter: time.Unix(1_900_000_000, 0), Failing: true},
			{Identity: server().Identity()},
		}
	}})
	want := `culvert_certificate_expiration_timestamp_seconds{identity="spiffe://td/ns/ns1/sa/client"} 1.9e+09
culvert_certificate_expiration_timestamp_seconds{identity="spiffe://td/ns/ns2/sa/server"} 0
culvert_certificate_renewal_failing{identity="spiffe://td/ns/ns1/sa/client"} 1
culvert_certificate_renewal_failing{identity="spiffe://td/ns/ns2/sa/server"} 0
`
	if d := cmp.Diff(want, scrape(t, tel, "culvert_certificate")); d != "" {
		t.Errorf("exposition (-want +got):\n%s", d)
	}
}

// TestSamples: figures of others are exposed, and a bad one spoils nothing.
func TestSamples(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{Samples: []func(func(telemetry.Sample)){
		func(emit func(telemetry.Sample)) {
			for _, loop := range []string{"0", "1"} {
				emit(telemetry.Sample{Name: "culvert_loop_streams", Help: "Streams.", Labels: []telemetry.Label{{Name: "loop", Value: loop}}, Value: 7})
			}
			emit(telemetry.Sample{Name: "culvert_tunnels_total", Counter: true, Value: 3})
		},
		func(emit func(telemetry.Sample)) {
			emit(telemetry.Sample{Name: "culvert_loop_streams", Labels: []telemetry.Label{{Name: "loop", Value: "1"}}, Value: 8}) // twice
			emit(telemetry.Sample{Name: "culvert bad"})
			emit(telemetry.Sample{Name: "culvert_bad", Labels: []telemetry.Label{{Name: "a-b"}}})
			emit(telemetry.Sample{Name: "culvert_bad", Labels: []telemetry.Label{{Name: "a"}, {Name: "a"}}})
			emit(telemetry.Sample{Name: "istio_build", Value: 2}) // exists
			emit(telemetry.Sample{Name: "culvert_odd", Labels: []telemetry.Label{{Name: "a", Value: "\xff"}}})
		},
	}})
	want := `culvert_loop_streams{loop="0"} 7
culvert_loop_streams{loop="1"} 7
culvert_odd{a="�"} 0
culvert_tunnels_total 3
`
	if d := cmp.Diff(want, scrape(t, tel, "culvert_loop", "culvert_tunnels", "culvert_bad", "culvert_odd", "culvert bad")); d != "" {
		t.Errorf("exposition (-want +got):\n%s", d)
	}
}

func TestRegisterer(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "culvert_other_total", Help: "x"})
	tel.Registerer().MustRegister(c)
	c.Inc()
	if got := scrape(t, tel, "culvert_other_total"); got != "culvert_other_total 1\n" {
		t.Errorf("exposition is %q", got)
	}
}

// TestDNSClientsComeAndGo: a pod without a controller, or of a Job, has a canonical name of its own. Not each leaves series for
// ever, which would be some KiB of memory and of every scrape.
func TestDNSClientsComeAndGo(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	w := client()
	o := tel.DNS(func() *workload.Workload { return w })
	for i := range 3000 {
		w = client()
		w.WorkloadName, w.CanonicalName = fmt.Sprint("job-", i), fmt.Sprint("job-", i)
		o.Query("A", "udp", true, false, time.Millisecond)
		tel.OnDemandDNS(w, "example.com")
	}
	for name, label := range map[string]string{
		"istio_dns_requests_total": "source_canonical_service", "istio_dns_upstream_requests_total": "source_canonical_service",
		"istio_dns_upstream_request_duration_seconds_count": "source_canonical_service", "istio_on_demand_dns_total": "source_workload",
	} {
		text := scrape(t, tel, name)
		if n := strings.Count(text, "\n"); n > 1001 {
			t.Errorf("%s has %d series after 3000 clients, want 1001 at most", name, n)
		}
		if n := value(t, text, name, label+`="overflow"`); n != 2000 {
			t.Errorf("%s counts %v beyond the limit, want 2000", name, n)
		}
	}
}
