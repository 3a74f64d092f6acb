// Package telemetry turns what the data plane does into Prometheus metrics under
// Istio's names and into one access-log line a connection.
//
// The data plane reports connections by Opened and Closed; everything between is
// read when somebody scrapes: the byte counters of live connections are summed per
// label set then, so that a byte on its way costs nothing here. The package knows
// neither tunnels nor sockets; cmd joins them to it.
//
// All methods of Telemetry may be called concurrently. None blocks on a slow
// reader of metrics or of the log: at the limit of its queue a log line is
// dropped and counted.
package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Format is the form of an access-log line.
type Format string

// The forms are those of slog's text and JSON handlers. The zero value is Text.
const (
	Text Format = "text"
	JSON Format = "json"
)

// Config configures a Telemetry. The zero value is usable: metrics without log.
type Config struct {
	// Version and Revision label the build metrics. Empty means "unknown".
	Version  string
	Revision string
	// Component labels istio_build. Empty means "culvert-node".
	Component string
	// Runtime adds the metrics of the process and of the Go runtime.
	Runtime bool

	// MaxSeries bounds the label sets of connections; connections beyond are
	// counted under one label set whose workloads are "overflow", until others have
	// not been used for one to two hours. Zero means 20,000, which is about 10 MiB.
	MaxSeries int

	// AccessLog receives whole lines, several a write, from one goroutine. Nil
	// means no access log.
	AccessLog io.Writer
	// AccessFormat is Text unless set.
	AccessFormat Format
	// AccessLevel decides which lines are written: completed connections are INFO,
	// failed ones ERROR, refused ones WARN, opened ones DEBUG. It is asked for each
	// line. Nil means INFO.
	AccessLevel slog.Leveler
	// AccessQueue is the number of lines that may wait for the writer; more are
	// dropped. Zero means 10,000.
	AccessQueue int
	// FlushTimeout bounds Close. Zero means 2 s.
	FlushTimeout time.Duration

	// Certificates lists the certificates held, for their expiry. Called for each
	// scrape. Nil means none.
	Certificates func() []Certificate
	// Samples are asked for further gauges and counters at each scrape.
	Samples []func(emit func(Sample))
}

// validate returns a copy with defaults applied.
func (c Config) validate() (Config, error) {
	var errs []error
	switch c.AccessFormat {
	case "":
		c.AccessFormat = Text
	case Text, JSON:
	default:
		errs = append(errs, fmt.Errorf("access log format %q is neither %q nor %q", c.AccessFormat, Text, JSON))
	}
	if c.MaxSeries < 0 || c.AccessQueue < 0 || c.FlushTimeout < 0 {
		errs = append(errs, errors.New("a limit is negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("configure telemetry: %w", err)
	}
	if c.MaxSeries == 0 {
		c.MaxSeries = 20_000
	}
	if c.AccessQueue == 0 {
		c.AccessQueue = 10_000
	}
	if c.FlushTimeout == 0 {
		c.FlushTimeout = 2 * time.Second
	}
	if c.AccessLevel == nil {
		c.AccessLevel = slog.LevelInfo
	}
	if c.Component == "" {
		c.Component = "culvert-node"
	}
	return c, nil
}

// Telemetry counts and logs. Make it with New, end it with Close.
type Telemetry struct {
	cfg      Config
	registry *prometheus.Registry
	counters counters
	series   table
	live     flows
	log      *accessLog // nil without access log

	open       [2]atomic.Int64 // connections by Direction
	overflowed atomic.Uint64
}

// New returns a Telemetry, whose access-log writer runs until Close.
func New(cfg Config) (*Telemetry, error) {
	cfg, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	t := &Telemetry{cfg: cfg, registry: prometheus.NewRegistry()}
	t.series.init(cfg.MaxSeries)
	if err := t.counters.register(t.registry, cfg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if cfg.Runtime {
		for _, c := range []prometheus.Collector{
			collectors.NewGoCollector(),
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		} {
			if err := t.registry.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	if cfg.AccessLog != nil {
		t.log = newAccessLog(cfg)
	}
	return t, nil
}

// Registerer accepts further collectors for the same scrape.
func (t *Telemetry) Registerer() prometheus.Registerer { return t.registry }

// Close writes the access-log lines that wait, within the flush timeout, and ends
// the writer. Lines of connections that end later are dropped and counted; metrics
// go on. Closing again is harmless.
func (t *Telemetry) Close() error {
	if t.log == nil {
		return nil
	}
	return t.log.close(t.cfg.FlushTimeout)
}
