package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

var (
	textTime = regexp.MustCompile(`^time=\S+ `)
	took     = regexp.MustCompile(`duration=\d+ms`)
)

// logged runs f and returns the text log without times.
func logged(t *testing.T, cfg telemetry.Config, f func(*telemetry.Telemetry)) string {
	t.Helper()
	var out workloadtest.Log
	cfg.AccessLog = &out
	tel := newTelemetry(t, cfg)
	f(tel)
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, took.ReplaceAllString(textTime.ReplaceAllString(line, ""), "duration=Nms"))
	}
	return strings.Join(lines, "")
}

// TestAccessLog: fields, their order and when they are left out.
func TestAccessLog(t *testing.T) {
	tests := []struct {
		name   string
		change func(*telemetry.Connection)
		want   string
	}{
		{"outbound", func(*telemetry.Connection) {},
			`level=INFO msg="connection complete" scope=access src.addr=10.0.0.1:40000 src.workload=client-abc src.namespace=ns1 ` +
				`src.identity=spiffe://td/ns/ns1/sa/client src.cluster=c1 dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 ` +
				`dst.service=server.ns2.svc.cluster.local dst.workload=server-xyz dst.namespace=ns2 ` +
				`dst.identity=spiffe://td/ns/ns2/sa/server dst.cluster=c1 direction=outbound bytes_sent=100 bytes_recv=2000 duration=Nms`},
		{"inbound-turns-the-bytes-round", func(c *telemetry.Connection) {
			c.Direction = telemetry.Inbound
			c.Service = nil
		}, `level=INFO msg="connection complete" scope=access src.addr=10.0.0.1:40000 src.workload=client-abc src.namespace=ns1 ` +
			`src.identity=spiffe://td/ns/ns1/sa/client src.cluster=c1 dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 ` +
			`dst.workload=server-xyz dst.namespace=ns2 ` +
			`dst.identity=spiffe://td/ns/ns2/sa/server dst.cluster=c1 direction=inbound bytes_sent=2000 bytes_recv=100 duration=Nms`},
		{"without-mtls-no-identities", func(c *telemetry.Connection) {
			c.Security, c.HBONE = telemetry.Unprotected, ""
			c.Source.ID = identity.ID{}
		}, `level=INFO msg="connection complete" scope=access src.addr=10.0.0.1:40000 src.workload=client-abc src.namespace=ns1 ` +
			`src.cluster=c1 dst.addr=10.0.0.2:15008 ` +
			`dst.service=server.ns2.svc.cluster.local dst.workload=server-xyz dst.namespace=ns2 ` +
			`dst.cluster=c1 direction=outbound bytes_sent=100 bytes_recv=2000 duration=Nms`},
		{"nothing-known", func(c *telemetry.Connection) {
			*c = telemetry.Connection{Start: c.Start, Source: telemetry.Peer{Addr: netip.MustParseAddrPort("[2001:db8::1]:1")}}
		}, `level=INFO msg="connection complete" scope=access src.addr=[2001:db8::1]:1 direction=outbound bytes_sent=0 bytes_recv=0 duration=Nms`},
		{"failed", func(c *telemetry.Connection) {
			c.Flag, c.Error = telemetry.Denied, "connection closed due to policy rejection: explicitly denied by: ns/name"
		}, `level=ERROR msg="connection complete" scope=access src.addr=10.0.0.1:40000 src.workload=client-abc src.namespace=ns1 ` +
			`src.identity=spiffe://td/ns/ns1/sa/client src.cluster=c1 dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 ` +
			`dst.service=server.ns2.svc.cluster.local dst.workload=server-xyz dst.namespace=ns2 ` +
			`dst.identity=spiffe://td/ns/ns2/sa/server dst.cluster=c1 direction=outbound bytes_sent=100 bytes_recv=2000 duration=Nms ` +
			`error="connection closed due to policy rejection: explicitly denied by: ns/name"`},
		{"policies-that-do-not-decide", func(c *telemetry.Connection) {
			*c = telemetry.Connection{Start: c.Start, Matches: []telemetry.PolicyMatch{
				{Policy: "ns/d", Effect: telemetry.WouldDeny}, {Policy: "ns/a", Effect: telemetry.Audited}, {Policy: "ns/e", Effect: telemetry.WouldAllow},
			}}
		}, `level=INFO msg="connection complete" scope=access direction=outbound bytes_sent=0 bytes_recv=0 duration=Nms ` +
			`policy.dry_run="deny ns/d, allow ns/e" policy.audit=ns/a`},
		{"failed-without-text", func(c *telemetry.Connection) {
			*c = telemetry.Connection{Start: c.Start, Flag: telemetry.Revoked}
		}, `level=ERROR msg="connection complete" scope=access direction=outbound bytes_sent=0 bytes_recv=0 duration=Nms error=CERT_REVOKED`},
		{"peer-from-baggage", func(c *telemetry.Connection) {
			*c = telemetry.Connection{Start: c.Start, Security: telemetry.MutualTLS, Direction: telemetry.Inbound, Source: telemetry.Peer{
				ID: clientID, Baggage: &workload.Baggage{WorkloadName: "a b", Namespace: "n=1"},
			}}
		}, `level=INFO msg="connection complete" scope=access src.workload="a b" src.namespace="n=1" src.identity=spiffe://td/ns/ns1/sa/client ` +
			`direction=inbound bytes_sent=0 bytes_recv=0 duration=Nms`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := logged(t, telemetry.Config{}, func(tel *telemetry.Telemetry) {
				c := outbound()
				tt.change(c)
				flag, text := c.Flag, c.Error
				c.Flag, c.Error = telemetry.None, ""
				tel.Opened(c)
				c.Flag, c.Error = flag, text
				tel.Closed(c)
			})
			if d := cmp.Diff(tt.want+"\n", got); d != "" {
				t.Errorf("line (-want +got):\n%s", d)
			}
		})
	}
}

func TestAccessLogLevels(t *testing.T) {
	run := func(tel *telemetry.Telemetry) {
		good := &telemetry.Connection{Start: time.Now()}
		tel.Opened(good)
		tel.Closed(good)
		bad := &telemetry.Connection{Start: time.Now(), Flag: telemetry.Denied}
		tel.Opened(bad)
		tel.Closed(bad)
		tel.Refused(&telemetry.Connection{
			Direction: telemetry.Inbound, Error: "no certificate",
			Source:      telemetry.Peer{Addr: netip.MustParseAddrPort("10.0.0.1:1")},
			Destination: telemetry.Peer{Addr: netip.MustParseAddrPort("10.0.0.2:2")},
		})
		tel.Refused(&telemetry.Connection{
			Error:  "not out",
			Source: telemetry.Peer{Addr: netip.MustParseAddrPort("10.0.0.1:1"), Workload: &workload.Workload{Name: "w", Namespace: "ns"}},
		})
	}
	const (
		opened  = "level=DEBUG msg=\"connection opened\" scope=access direction=outbound\n"
		good    = "level=INFO msg=\"connection complete\" scope=access direction=outbound bytes_sent=0 bytes_recv=0 duration=Nms\n"
		bad     = "level=ERROR msg=\"connection complete\" scope=access direction=outbound bytes_sent=0 bytes_recv=0 duration=Nms error=DENY\n"
		refused = "level=WARN msg=\"connection failed\" scope=access src.addr=10.0.0.1:1 dst.addr=10.0.0.2:2 direction=inbound error=\"no certificate\"\n" +
			"level=WARN msg=\"connection failed\" scope=access src.addr=10.0.0.1:1 src.workload=w src.namespace=ns direction=outbound error=\"not out\"\n"
	)
	tests := []struct {
		name  string
		level slog.Leveler
		want  string
	}{
		{"default", nil, good + bad + refused},
		{"debug", slog.LevelDebug, opened + good + opened + bad + refused},
		{"warn", slog.LevelWarn, bad + refused},
		{"error", slog.LevelError, bad},
		{"off", slog.LevelError + 100, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, logged(t, telemetry.Config{AccessLevel: tt.level}, run)); d != "" {
				t.Errorf("log (-want +got):\n%s", d)
			}
		})
	}
}

// TestAccessLogLikeSlog compares lines with what slog's handlers make of the same
// values, for names that need quoting.
func TestAccessLogLikeSlog(t *testing.T) {
	values := []string{
		"plain", "two words", "a=b", `q"uote`, `back\slash`, "tab\there", "line\nbreak", "ünïcode", "\u2028", "emoji🙂", "<&>", "\x7f",
	}
	at := time.Now()
	for _, format := range []telemetry.Format{telemetry.Text, telemetry.JSON} {
		for _, v := range values {
			t.Run(fmt.Sprintf("%s/%q", format, v), func(t *testing.T) {
				var out workloadtest.Log
				tel := newTelemetry(t, telemetry.Config{AccessLog: &out, AccessFormat: format})
				tel.Refused(&telemetry.Connection{Error: v, Source: telemetry.Peer{Addr: netip.MustParseAddrPort("[fe80::1%eth0]:1")}})
				if err := tel.Close(); err != nil {
					t.Fatal(err)
				}
				var want bytes.Buffer
				var h slog.Handler = slog.NewTextHandler(&want, nil)
				if format == telemetry.JSON {
					h = slog.NewJSONHandler(&want, nil)
				}
				r := slog.NewRecord(at, slog.LevelWarn, "connection failed", 0)
				r.AddAttrs(slog.String("scope", "access"), slog.String("src.addr", "[fe80::1%eth0]:1"),
					slog.String("direction", "outbound"), slog.String("error", v))
				if err := h.Handle(context.Background(), r); err != nil {
					t.Fatal(err)
				}
				if format == telemetry.Text {
					if d := cmp.Diff(textTime.ReplaceAllString(want.String(), ""), textTime.ReplaceAllString(out.String(), "")); d != "" {
						t.Errorf("line (-slog +got):\n%s", d)
					}
					return
				}
				if d := cmp.Diff(fields(t, want.Bytes()), fields(t, []byte(out.String()))); d != "" {
					t.Errorf("line (-slog +got):\n%s", d)
				}
			})
		}
	}
}

// fields decodes a JSON line into "key=value" in the order of the line, without
// the time.
func fields(t *testing.T, line []byte) []string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(line))
	var out []string
	next := func() json.Token {
		tok, err := d.Token()
		if err != nil {
			t.Fatalf("line %s: %v", line, err)
		}
		return tok
	}
	next()
	for d.More() {
		key, value := next(), next()
		if key == "time" {
			if _, err := time.Parse(time.RFC3339Nano, value.(string)); err != nil {
				t.Error(err)
			}
			continue
		}
		out = append(out, fmt.Sprintf("%v=%v", key, value))
	}
	return out
}

func TestAccessLogJSON(t *testing.T) {
	var out workloadtest.Log
	tel := newTelemetry(t, telemetry.Config{AccessLog: &out, AccessFormat: telemetry.JSON})
	c := outbound()
	c.Start = time.Now().Add(-1500 * time.Millisecond)
	tel.Opened(c)
	tel.Closed(c)
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	got := fields(t, []byte(out.String()))
	want := []string{
		"level=INFO", "msg=connection complete", "scope=access",
		"src.addr=10.0.0.1:40000", "src.workload=client-abc", "src.namespace=ns1",
		"src.identity=spiffe://td/ns/ns1/sa/client", "src.cluster=c1",
		"dst.addr=10.0.0.2:15008", "dst.hbone_addr=10.0.0.2:8080", "dst.service=server.ns2.svc.cluster.local",
		"dst.workload=server-xyz", "dst.namespace=ns2", "dst.identity=spiffe://td/ns/ns2/sa/server", "dst.cluster=c1",
		"direction=outbound", "bytes_sent=100", "bytes_recv=2000",
	}
	if len(got) != len(want)+1 || !strings.HasPrefix(got[len(got)-1], "duration=15") {
		t.Fatalf("fields are %v", got)
	}
	if d := cmp.Diff(want, got[:len(want)]); d != "" {
		t.Errorf("fields (-want +got):\n%s", d)
	}
}

// TestAccessLogOverflowKeepsNames: the log has no limit of label sets.
func TestAccessLogOverflowKeepsNames(t *testing.T) {
	got := logged(t, telemetry.Config{MaxSeries: 1}, func(tel *telemetry.Telemetry) {
		tel.Closed(&telemetry.Connection{Start: time.Now()})
		tel.Closed(outbound())
	})
	if !strings.Contains(got, "src.namespace=ns1") || strings.Contains(got, "overflow") {
		t.Errorf("log is\n%s", got)
	}
}

// gate is a writer that waits to be opened.
type gate struct {
	open  chan struct{}
	lines int
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.lines += bytes.Count(p, []byte("\n"))
	return len(p), nil
}

// TestAccessLogNeverBlocks: a reader that does not read costs lines, not traffic.
func TestAccessLogNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		tel := newTelemetry(t, telemetry.Config{AccessLog: g, AccessQueue: 10, FlushTimeout: time.Second})
		for range 1000 {
			tel.Closed(&telemetry.Connection{Start: time.Now()})
		}
		if err := tel.Close(); err == nil || err.Error() != "flush access log: timed out" {
			t.Errorf("Close gives %v while the reader is stuck", err)
		}
		tel.Closed(&telemetry.Connection{Start: time.Now()})
		close(g.open)
		if err := tel.Close(); err != nil {
			t.Errorf("Close gives %v after the reader goes on", err)
		}
		dropped := value(t, scrape(t, tel), "culvert_access_log_dropped_total")
		if g.lines < 10 || float64(g.lines)+dropped != 1001 {
			t.Errorf("%d lines written, %v dropped, of 1001", g.lines, dropped)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestAccessLogBrokenWriter(t *testing.T) {
	tel := newTelemetry(t, telemetry.Config{AccessLog: brokenWriter{}})
	for range 5 {
		tel.Closed(&telemetry.Connection{Start: time.Now()})
	}
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	if got := value(t, scrape(t, tel), "culvert_access_log_dropped_total"); got != 5 {
		t.Errorf("%v lines dropped, want 5", got)
	}
}
