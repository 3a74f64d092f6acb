package telemetry

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/culvert-mesh/culvert/identity"
)

var _ prometheus.Gatherer = (*Telemetry)(nil)

// Gather collects everything for one scrape. Traffic metrics carry their labels in
// the reference's order; a registry would sort them and check what cannot be wrong
// here.
func (t *Telemetry) Gather() ([]*dto.MetricFamily, error) {
	families, err := t.registry.Gather()
	t.live.fold()
	all := t.series.list()
	t.series.forget()

	families = append(families, traffic(all)...)
	families = append(families, t.sockets(), t.overflowFamily())
	if t.log != nil {
		families = append(families, single("culvert_access_log_dropped_total",
			"Access-log lines dropped because the reader of the log is too slow.", dto.MetricType_COUNTER, float64(t.log.dropped.Load())))
	}
	families = append(families, t.certificates()...)
	families = append(families, t.samples(families)...)
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return families, err
}

// traffic makes the five families that are summed over connections. The label
// pairs of a series are made once and shared by its metrics.
func traffic(all []*series) []*dto.MetricFamily {
	families := []*dto.MetricFamily{
		family("istio_tcp_connections_opened_total", "TCP connections opened.", dto.MetricType_COUNTER),
		family("istio_tcp_connections_closed_total", "TCP connections closed.", dto.MetricType_COUNTER),
		family("istio_tcp_connections_failed_total", "TCP connections that ended with a failure, by response_flags.", dto.MetricType_COUNTER),
		family("istio_tcp_received_bytes_total", "Bytes from client to server on TCP connections.", dto.MetricType_COUNTER),
		family("istio_tcp_sent_bytes_total", "Bytes from server to client on TCP connections.", dto.MetricType_COUNTER),
	}
	for _, s := range all {
		pairs := s.pairs()
		add := func(i int, n uint64) {
			m := metric(dto.MetricType_COUNTER, float64(n))
			m.Label = pairs
			families[i].Metric = append(families[i].Metric, m)
		}
		closed := s.closed.Load()
		if opened := s.opened.Load(); opened > 0 {
			add(0, opened)
			add(3, s.received.Load())
			add(4, s.sent.Load())
		}
		if closed > 0 {
			add(1, closed)
		}
		if failed := s.failed.Load(); failed > 0 {
			add(2, failed)
		}
	}
	return slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return len(f.Metric) == 0 })
}

// pairs returns the labels of the series for exposition.
func (s *series) pairs() []*dto.LabelPair {
	n := s.labels.count()
	values := make([]dto.LabelPair, n)
	pairs := make([]*dto.LabelPair, n)
	for i := range n {
		values[i].Name = &labelNames[i]
		values[i].Value = &s.labels[i]
		pairs[i] = &values[i]
	}
	return pairs
}

func (t *Telemetry) sockets() *dto.MetricFamily {
	f := family("istio_tcp_sockets_open", "Application connections open now.", dto.MetricType_GAUGE)
	for _, d := range []Direction{Inbound, Outbound} {
		f.Metric = append(f.Metric, metric(dto.MetricType_GAUGE, float64(t.open[d].Load()), Label{"reporter", d.reporter()}))
	}
	return f
}

func (t *Telemetry) overflowFamily() *dto.MetricFamily {
	return single("culvert_metrics_overflow_total",
		"Connections counted under the overflow label set because the limit of label sets was reached.",
		dto.MetricType_COUNTER, float64(t.overflowed.Load()))
}

// Certificate is one identity's certificate as held by the agent.
type Certificate struct {
	Identity identity.ID
	// NotAfter is zero while there is none.
	NotAfter time.Time
	// Failing says that the last attempt to get or renew it failed.
	Failing bool
}

// certificates exposes the expiry of each identity's certificate, and whether the
// one held is only a remainder because it cannot be renewed.
func (t *Telemetry) certificates() []*dto.MetricFamily {
	if t.cfg.Certificates == nil {
		return nil
	}
	expiry := family("culvert_certificate_expiration_timestamp_seconds",
		"End of validity of the certificate held for an identity; 0 when there is none.", dto.MetricType_GAUGE)
	failing := family("culvert_certificate_renewal_failing",
		"1 while the certificate of an identity cannot be got or renewed.", dto.MetricType_GAUGE)
	for _, c := range t.cfg.Certificates() {
		id := Label{"identity", c.Identity.String()}
		var end, failed float64
		if !c.NotAfter.IsZero() {
			end = float64(c.NotAfter.Unix())
		}
		if c.Failing {
			failed = 1
		}
		expiry.Metric = append(expiry.Metric, metric(dto.MetricType_GAUGE, end, id))
		failing.Metric = append(failing.Metric, metric(dto.MetricType_GAUGE, failed, id))
	}
	if len(expiry.Metric) == 0 {
		return nil
	}
	return []*dto.MetricFamily{expiry, failing}
}

func family(name, help string, kind dto.MetricType) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
}

// single makes a family of one metric without labels.
func single(name, help string, kind dto.MetricType, value float64) *dto.MetricFamily {
	f := family(name, help, kind)
	f.Metric = []*dto.Metric{metric(kind, value)}
	return f
}

func metric(kind dto.MetricType, value float64, labels ...Label) *dto.Metric {
	m := new(dto.Metric)
	for i := range labels {
		m.Label = append(m.Label, &dto.LabelPair{Name: &labels[i].Name, Value: &labels[i].Value})
	}
	if kind == dto.MetricType_COUNTER {
		m.Counter = &dto.Counter{Value: &value}
	} else {
		m.Gauge = &dto.Gauge{Value: &value}
	}
	return m
}
