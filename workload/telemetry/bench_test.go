package telemetry_test

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// BenchmarkConnection is what one connection costs its own goroutine.
func BenchmarkConnection(b *testing.B) {
	for _, bc := range []struct {
		name   string
		cfg    telemetry.Config
		change func(*telemetry.Connection)
	}{
		{"metrics", telemetry.Config{}, func(*telemetry.Connection) {}},
		{"metrics-from-baggage", telemetry.Config{}, func(c *telemetry.Connection) {
			c.Source.Workload = nil
			c.Source.Baggage = &workload.Baggage{WorkloadName: "w", Namespace: "n", Service: "s", Cluster: "c"}
		}},
		{"text-log", telemetry.Config{AccessLog: io.Discard}, func(*telemetry.Connection) {}},
		{"json-log", telemetry.Config{AccessLog: io.Discard, AccessFormat: telemetry.JSON}, func(*telemetry.Connection) {}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			tel := newTelemetry(b, bc.cfg)
			proto := outbound()
			bc.change(proto)
			b.ReportAllocs()
			for b.Loop() {
				c := new(telemetry.Connection)
				*c = *proto
				tel.Opened(c)
				tel.Closed(c)
			}
		})
	}
}

// BenchmarkScrape is one scrape with many label sets and live connections.
func BenchmarkScrape(b *testing.B) {
	tel := newTelemetry(b, telemetry.Config{})
	for i := range 10_000 {
		c := outbound()
		c.Start = time.Now()
		if i < 1000 {
			c.Source.Workload.WorkloadName = fmt.Sprint("w", i)
		}
		tel.Opened(c)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tel.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
