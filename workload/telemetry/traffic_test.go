package telemetry_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// TestTrafficLabels: names, values and order of the labels.
func TestTrafficLabels(t *testing.T) {
	const opened = "istio_tcp_connections_opened_total"
	tests := []struct {
		name   string
		change func(*telemetry.Connection)
		want   string
	}{
		{"outbound-complete", func(*telemetry.Connection) {}, `{reporter="source",` +
			`source_workload="client",source_canonical_service="client-app",source_canonical_revision="v1",` +
			`source_workload_namespace="ns1",source_principal="spiffe://td/ns/ns1/sa/client",source_app="client-app",` +
			`source_version="v1",source_cluster="c1",` +
			`destination_service="server.ns2.svc.cluster.local",destination_service_namespace="ns2",destination_service_name="server",` +
			`destination_workload="server",destination_canonical_service="server-app",destination_canonical_revision="v2",` +
			`destination_workload_namespace="ns2",destination_principal="spiffe://td/ns/ns2/sa/server",destination_app="server-app",` +
			`destination_version="v2",destination_cluster="c1",` +
			`request_protocol="tcp",response_flags="-",connection_security_policy="mutual_tls",` +
			`source_region="r1",source_zone="z1",destination_region="unknown",destination_zone="unknown"}`},
		{"nothing-known", func(c *telemetry.Connection) {
			*c = telemetry.Connection{Direction: telemetry.Inbound}
		}, `{reporter="destination",` +
			`source_workload="unknown",source_canonical_service="unknown",source_canonical_revision="unknown",` +
			`source_workload_namespace="unknown",source_principal="unknown",source_app="unknown",` +
			`source_version="unknown",source_cluster="unknown",` +
			`destination_service="unknown",destination_service_namespace="unknown",destination_service_name="unknown",` +
			`destination_workload="unknown",destination_canonical_service="unknown",destination_canonical_revision="unknown",` +
			`destination_workload_namespace="unknown",destination_principal="unknown",destination_app="unknown",` +
			`destination_version="unknown",destination_cluster="unknown",` +
			`request_protocol="tcp",response_flags="-",connection_security_policy="unknown"}`},
		{"source-from-baggage", func(c *telemetry.Connection) {
			c.Direction = telemetry.Inbound
			c.Source.Workload = nil
			c.Source.Baggage = &workload.Baggage{
				Cluster: "c2", Namespace: "far", WorkloadName: "wl", Service: "svc", Revision: "v\xff", Zone: "z9",
			}
			c.Source.ID = identity.MustParse("spiffe://other/ns/far/sa/wl")
			c.Destination.ID = identity.MustParse("spiffe://td/ns/ns2/sa/alternative")
			c.Service = nil
			c.Security = telemetry.SameNode
		}, `{reporter="destination",` +
			`source_workload="wl",source_canonical_service="svc",source_canonical_revision="v�",` +
			`source_workload_namespace="far",source_principal="spiffe://other/ns/far/sa/wl",source_app="wl",` +
			`source_version="v�",source_cluster="c2",` +
			`destination_service="unknown",destination_service_namespace="unknown",destination_service_name="unknown",` +
			`destination_workload="server",destination_canonical_service="server-app",destination_canonical_revision="v2",` +
			`destination_workload_namespace="ns2",destination_principal="spiffe://td/ns/ns2/sa/alternative",destination_app="server-app",` +
			`destination_version="v2",destination_cluster="c1",` +
			`request_protocol="tcp",response_flags="-",connection_security_policy="same_node",` +
			`source_region="unknown",source_zone="z9",destination_region="unknown",destination_zone="unknown"}`},
		{"baggage-does-not-override-discovery", func(c *telemetry.Connection) {
			c.Source.Baggage = &workload.Baggage{WorkloadName: "liar"}
			c.Destination.Workload, c.Service = nil, nil
			c.Source.Workload.CanonicalName = ""
		}, `{reporter="source",` +
			`source_workload="client",source_canonical_service="unknown",source_canonical_revision="v1",` +
			`source_workload_namespace="ns1",source_principal="spiffe://td/ns/ns1/sa/client",source_app="unknown",` +
			`source_version="v1",source_cluster="c1",` +
			`destination_service="unknown",destination_service_namespace="unknown",destination_service_name="unknown",` +
			`destination_workload="unknown",destination_canonical_service="unknown",destination_canonical_revision="unknown",` +
			`destination_workload_namespace="unknown",destination_principal="unknown",destination_app="unknown",` +
			`destination_version="unknown",destination_cluster="unknown",` +
			`request_protocol="tcp",response_flags="-",connection_security_policy="mutual_tls",` +
			`source_region="r1",source_zone="z1",destination_region="unknown",destination_zone="unknown"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tel := newTelemetry(t, telemetry.Config{})
			c := outbound()
			tt.change(c)
			tel.Opened(c)
			want := opened + tt.want + " 1\n"
			if d := cmp.Diff(want, scrape(t, tel, opened)); d != "" {
				t.Errorf("exposition (-want +got):\n%s", d)
			}
		})
	}
}

// value returns the sum of a metric's values, over lines with all the texts.
func value(t testing.TB, exposition, metric string, texts ...string) float64 {
	t.Helper()
	var sum float64
lines:
	for line := range strings.Lines(exposition) {
		if !strings.HasPrefix(line, metric+"{") && !strings.HasPrefix(line, metric+" ") {
			continue
		}
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		var v float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// TestLifeOfAConnection: what each step shows at a scrape.
func TestLifeOfAConnection(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	check := func(step string, want map[string]float64) {
		t.Helper()
		text := scrape(t, tel)
		for metric, w := range want {
			if got := value(t, text, metric); got != w {
				t.Errorf("%s: %s = %v, want %v", step, metric, got, w)
			}
		}
	}
	const (
		opened   = "istio_tcp_connections_opened_total"
		closed   = "istio_tcp_connections_closed_total"
		failed   = "istio_tcp_connections_failed_total"
		received = "istio_tcp_received_bytes_total"
		sent     = "istio_tcp_sent_bytes_total"
		sockets  = "istio_tcp_sockets_open"
	)
	c := outbound()
	bytes := moved(0, 0)
	c.Bytes = bytes
	tel.Opened(c)
	check("opened", map[string]float64{opened: 1, closed: 0, received: 0, sent: 0, sockets: 1})
	bytes.received.Store(10)
	bytes.sent.Store(20)
	check("live", map[string]float64{received: 10, sent: 20})
	check("live-again", map[string]float64{received: 10, sent: 20})
	bytes.received.Store(11)
	other := outbound()
	tel.Opened(other)
	check("two-live", map[string]float64{opened: 2, received: 111, sent: 2020, sockets: 2})
	bytes.sent.Store(25)
	tel.Closed(c)
	check("one-closed", map[string]float64{closed: 1, failed: 0, received: 111, sent: 2025, sockets: 1})
	bytes.sent.Store(1 << 40) // no longer ours
	tel.Closed(c)
	check("closed-twice", map[string]float64{closed: 1, sent: 2025, sockets: 1})
	tel.Closed(other)
	check("all-closed", map[string]float64{opened: 2, closed: 2, received: 111, sent: 2025, sockets: 0})

	alone := outbound()
	tel.Closed(alone) // never reported as opened
	check("only-closed", map[string]float64{opened: 3, closed: 3, received: 211, sockets: 0})
}

// TestEachDifferenceCounts: connections that differ in one label do not share a
// series, however their labels are found.
func TestEachDifferenceCounts(t *testing.T) {
	other := identity.MustParse("spiffe://td/ns/x/sa/y")
	src, dst, svc := client(), server(), service()
	tests := []struct {
		name   string
		change func(*telemetry.Connection)
	}{
		{"direction", func(c *telemetry.Connection) { c.Direction = telemetry.Inbound }},
		{"security", func(c *telemetry.Connection) { c.Security = telemetry.SameNode }},
		{"source", func(c *telemetry.Connection) { c.Source.Workload = server() }},
		{"destination", func(c *telemetry.Connection) { c.Destination.Workload = client() }},
		{"service", func(c *telemetry.Connection) { c.Service = nil }},
		{"source-identity", func(c *telemetry.Connection) { c.Source.ID = other }},
		{"destination-identity", func(c *telemetry.Connection) { c.Destination.ID = other }},
		{"source-from-baggage", func(c *telemetry.Connection) {
			c.Source.Workload, c.Source.Baggage = nil, &workload.Baggage{Service: "b"}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tel := newTelemetry(t, telemetry.Config{})
			for range 3 {
				for _, change := range []func(*telemetry.Connection){func(*telemetry.Connection) {}, tt.change} {
					c := outbound()
					c.Source.Workload, c.Destination.Workload, c.Service = src, dst, svc
					change(c)
					tel.Opened(c)
				}
			}
			got := scrape(t, tel, "istio_tcp_connections_opened_total")
			if strings.Count(got, "} 3\n") != 2 {
				t.Errorf("want two series of three connections, got\n%s", got)
			}
		})
	}
}

// TestFailureFlag: the end of a failed connection is in a series of its own.
func TestFailureFlag(t *testing.T) {
	tests := []struct {
		flag telemetry.Flag
		want string
	}{
		{telemetry.Denied, "DENY"},
		{telemetry.ConnectFailure, "CONNECT"},
		{telemetry.TLSFailure, "TLS_FAILURE"},
		{telemetry.HTTP2Failure, "H2_HANDSHAKE_FAILURE"},
		{telemetry.NetworkPolicy, "NETWORK_POLICY"},
		{telemetry.IdentityError, "IDENTITY_ERROR"},
		{telemetry.Revoked, "CERT_REVOKED"},
		{telemetry.Flag(99), "CONNECT"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(uint8(tt.flag)), func(t *testing.T) {
			tel := newTelemetry(t, telemetry.Config{})
			for range 2 {
				c := outbound()
				tel.Opened(c)
				c.Flag = tt.flag
				tel.Closed(c)
			}
			text := scrape(t, tel)
			plain, flagged := `response_flags="-"`, `response_flags="`+tt.want+`"`
			for _, w := range []struct {
				metric, flag string
				want         float64
			}{
				{"istio_tcp_connections_opened_total", plain, 2},
				{"istio_tcp_connections_opened_total", flagged, 0},
				{"istio_tcp_connections_closed_total", plain, 0},
				{"istio_tcp_connections_closed_total", flagged, 2},
				{"istio_tcp_connections_failed_total", flagged, 2},
				{"istio_tcp_received_bytes_total", plain, 200},
			} {
				if got := value(t, text, w.metric, w.flag); got != w.want {
					t.Errorf("%s with %s = %v, want %v", w.metric, w.flag, got, w.want)
				}
			}
		})
	}
}

// TestSeriesLimit: connections beyond the limit are counted, but not by name.
func TestSeriesLimit(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{MaxSeries: 3})
	for i := range 10 {
		c := outbound()
		c.Source.Workload.WorkloadName = fmt.Sprintf("w%d", i)
		tel.Opened(c)
		c.Flag = telemetry.Denied
		tel.Closed(c)
	}
	text := scrape(t, tel)
	const opened = "istio_tcp_connections_opened_total"
	if got := value(t, text, opened); got != 10 {
		t.Errorf("%v connections opened, want 10", got)
	}
	if got := value(t, text, opened, `source_workload="overflow"`); got != 8 {
		t.Errorf("%v connections under overflow, want 8", got)
	}
	if got := value(t, text, "culvert_metrics_overflow_total"); got != 8 {
		t.Errorf("overflow counter is %v, want 8", got)
	}
	if got := value(t, text, "istio_tcp_connections_failed_total", `response_flags="DENY"`); got != 10 {
		t.Errorf("%v connections failed, want 10", got)
	}
}

// TestSeriesLimitIsLeft: workloads that are gone do not keep those that come from being counted by name; who has a
// connection, or had one lately, keeps its name.
func TestSeriesLimitIsLeft(t *testing.T) {
	for most := 7; most < 11; most++ { // the last that fits is a series of connections, or of failures
		t.Run(fmt.Sprint(most), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { limitIsLeft(t, most) }) })
	}
}

func limitIsLeft(t *testing.T, most int) {
	tel := newTelemetry(t, telemetry.Config{MaxSeries: most})
	of := func(name string) *telemetry.Connection {
		c := outbound()
		c.Source.Workload.WorkloadName = name
		tel.Opened(c)
		return c
	}
	deny := func(c *telemetry.Connection) {
		c.Flag = telemetry.Denied
		tel.Closed(c)
	}
	tel.Closed(of("again"))
	live := of("live")
	for i := range 10 {
		tel.Closed(of(fmt.Sprintf("job%d", i)))
		deny(of(fmt.Sprintf("job%d", i)))
	}
	deny(of("again")) // finds no room for its failures
	for range 8 {
		time.Sleep(30 * time.Minute)
		tel.Closed(of("again"))
		scrape(t, tel)
	}
	tel.Closed(of("new"))
	deny(of("again"))
	deny(live)
	text := scrape(t, tel)
	for name, want := range map[string]struct{ opened, failed float64 }{"new": {1, 0}, "live": {1, 1}, "again": {11, 1}, "job0": {0, 0}} {
		label := `source_workload="` + name + `"`
		if got := value(t, text, "istio_tcp_connections_opened_total", label); got != want.opened {
			t.Errorf("%v connections of %s by name, want %v", got, name, want.opened)
		}
		if got := value(t, text, "istio_tcp_connections_failed_total", label); got != want.failed {
			t.Errorf("%v failures of %s by name, want %v", got, name, want.failed)
		}
	}
	if got := value(t, text, "istio_tcp_sent_bytes_total", `source_workload="live"`); got != 2000 {
		t.Errorf("%v bytes of a connection that was there all the time, want 2000", got)
	}
}

// TestClaimsLeaveRoom: what a peer says of itself has a part of the label sets only, so that one that always says something
// else, and is denied each time, does not take from others their names.
func TestClaimsLeaveRoom(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{MaxSeries: 320})
	for i := range 400 {
		c := outbound()
		c.Direction = telemetry.Inbound
		c.Source.Workload, c.Source.Baggage = nil, &workload.Baggage{WorkloadName: fmt.Sprintf("w%d", i)}
		tel.Opened(c)
		c.Flag = telemetry.Denied
		tel.Closed(c)
	}
	honest := outbound()
	honest.Direction = telemetry.Inbound
	honest.Source.Workload.WorkloadName = "honest"
	tel.Opened(honest)
	tel.Closed(honest)
	text := scrape(t, tel)
	const opened = "istio_tcp_connections_opened_total"
	if got := value(t, text, opened, `source_workload="honest"`); got != 1 {
		t.Errorf("%v connections under a known name, want 1", got)
	}
	if got := value(t, text, opened, `source_workload="w0"`); got != 1 {
		t.Errorf("%v connections under the first claimed name, want 1", got)
	}
	if got := value(t, text, opened); got != 401 {
		t.Errorf("%v connections opened, want 401", got)
	}
}

// TestClaimsGrowOld: those of peers that are gone leave their part to others.
func TestClaimsGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel := newTelemetry(t, telemetry.Config{MaxSeries: 320})
		claim := func(name string) float64 {
			c := outbound()
			c.Direction = telemetry.Inbound
			c.Source.Workload, c.Source.Baggage = nil, &workload.Baggage{WorkloadName: name}
			tel.Opened(c)
			tel.Closed(c)
			return value(t, scrape(t, tel), "istio_tcp_connections_opened_total", `source_workload="`+name+`"`)
		}
		for i := range 20 {
			claim(fmt.Sprintf("w%d", i))
		}
		if n := claim("late"); n != 0 {
			t.Errorf("%v connections by name of one too many", n)
		}
		for range 4 {
			time.Sleep(time.Hour)
			scrape(t, tel)
		}
		if n := claim("later"); n != 1 {
			t.Errorf("%v connections by name of who came when the others had gone", n)
		}
	})
}

// TestConcurrentScrapes: sums never go back while connections come and go, and
// nothing is counted twice or lost.
func TestConcurrentScrapes(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{})
	const workers, each = 4, 300
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			src, dst := client(), server()
			for range each {
				c := outbound()
				c.Source.Workload, c.Destination.Workload = src, dst
				b := moved(0, 0)
				c.Bytes = b
				tel.Opened(c)
				for range 10 {
					b.received.Add(3)
					b.sent.Add(7)
				}
				tel.Closed(c)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var last float64
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got := value(t, scrape(t, tel), "istio_tcp_sent_bytes_total")
		if got < last {
			t.Fatalf("bytes sent went back from %v to %v", last, got)
		}
		last = got
	}
	if want := float64(workers * each * 70); last != want {
		t.Errorf("%v bytes sent, want %v", last, want)
	}
	if got := value(t, scrape(t, tel), "istio_tcp_received_bytes_total"); got != workers*each*30 {
		t.Errorf("%v bytes received, want %d", got, workers*each*30)
	}
}

// TestExpositionParses: an independent parser accepts the whole of it.
func TestExpositionParses(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{Runtime: true, Version: "1.2.3"})
	c := outbound()
	c.Source.Workload.WorkloadName = "a\"b\\c\nd"
	tel.Opened(c)
	tel.Closed(c)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(scrape(t, tel)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"istio_tcp_connections_opened_total", "istio_build", "culvert_build_info", "process_open_fds", "go_goroutines"} {
		if families[name] == nil {
			t.Errorf("no %s", name)
		}
	}
}
