package telemetry

import (
	"errors"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/culvert-mesh/culvert/workload"
)

// counters are the instruments that are not summed over connections.
type counters struct {
	crlRejections *prometheus.CounterVec
	crlUntracked  *prometheus.CounterVec
	onDemandDNS   *prometheus.CounterVec
	demanders     names[demander]

	dnsRequests *prometheus.CounterVec
	dnsUpstream *prometheus.CounterVec
	dnsFailures *prometheus.CounterVec
	dnsDuration *prometheus.HistogramVec
	dnsClients  names[dnsClient]

	xdsTerminations *prometheus.CounterVec
	xdsMessages     *prometheus.CounterVec
	xdsBytes        *prometheus.CounterVec

	policies policyMatches
}

// dnsClient is a canonical service and its revision.
type dnsClient struct{ service, revision string }

// demander is a source, by its labels, and what it asks for.
type demander struct {
	source   [lService - lSource]string
	hostname string
}

func (c *counters) register(r prometheus.Registerer, cfg Config) error {
	var errs []error
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		errs = append(errs, r.Register(v))
		return v
	}
	c.crlRejections = vec("istio_crl_policy_rejections_total", "Handshakes refused because a certificate is revoked.", "reporter")
	c.crlUntracked = vec("istio_crl_untracked_connections_total", "Connections whose certificates cannot be rechecked.", "reporter")
	c.onDemandDNS = vec("istio_on_demand_dns_total", "Host names resolved for connections to workloads without an address.",
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster", "hostname")

	dns := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	c.dnsRequests = vec("istio_dns_requests_total", "DNS questions received.", dns...)
	c.dnsUpstream = vec("istio_dns_upstream_requests_total", "DNS questions forwarded.", dns...)
	c.dnsFailures = vec("istio_dns_upstream_failures_total", "DNS questions forwarded without a usable answer.", dns...)
	c.dnsDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "istio_dns_upstream_request_duration_seconds",
		Help:    "Time to the answer of forwarded DNS questions.",
		Buckets: []float64{.0005, .001, .01, .1, 1, 5},
	}, dns)
	errs = append(errs, r.Register(c.dnsDuration))

	c.xdsTerminations = vec("istio_xds_connection_terminations_total", "Ends of the discovery stream.", "reason")
	c.xdsMessages = vec("istio_xds_message_total", "Discovery responses received.", "url")
	c.xdsBytes = vec("istio_xds_message_bytes_total", "Bytes of discovery resources received.", "url")

	c.policies.counter = vec("culvert_policy_matches_total",
		"Connections that a policy matched without deciding: Audit and dry-run policies.", "policy", "effect")

	info := func(name, help string, labels prometheus.Labels) {
		errs = append(errs, r.Register(prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return 1 })))
	}
	info("istio_build", "Component and version.", prometheus.Labels{
		"component": cfg.Component, "tag": orUnknown(cfg.Version),
	})
	info("culvert_build_info", "Version, source revision and Go version of the binary.", prometheus.Labels{
		"version": orUnknown(cfg.Version), "revision": orUnknown(cfg.Revision), "go_version": runtime.Version(),
	})
	return errors.Join(errs...)
}

// CRLRejected counts a handshake that was refused because of a revoked certificate.
func (t *Telemetry) CRLRejected(d Direction) {
	t.counters.crlRejections.WithLabelValues(d.reporter()).Inc()
}

// CRLUntracked counts a connection that a later revocation cannot end.
func (t *Telemetry) CRLUntracked(d Direction) {
	t.counters.crlUntracked.WithLabelValues(d.reporter()).Inc()
}

// OnDemandDNS counts a host name that had to be resolved for a connection of the
// source, which may be nil.
func (t *Telemetry) OnDemandDNS(source *workload.Workload, hostname string) {
	l := labelsOf(&Connection{Source: Peer{Workload: source}})
	d := demander{[lService - lSource]string(l[lSource:lService]), orUnknown(hostname)}
	if !t.counters.demanders.has(d) {
		for i := range d.source {
			d.source[i] = unknown
		}
		d.source[lWorkload], d.hostname = overflow, overflow
	}
	t.counters.onDemandDNS.WithLabelValues(append(d.source[:], d.hostname)...).Inc()
}

// DNSObserver counts the DNS questions of one pod. It fits dns/server's Observer.
type DNSObserver struct {
	counters *counters
	source   func() *workload.Workload
}

// DNS returns the observer for the pod whose workload source returns; source is
// asked for each question and may return nil while the workload is unknown.
func (t *Telemetry) DNS(source func() *workload.Workload) *DNSObserver {
	return &DNSObserver{counters: &t.counters, source: source}
}

// Query counts a question. Types that nobody asks in earnest share one label
// value, since an application chooses them freely.
func (o *DNSObserver) Query(qtype, proto string, forwarded, failed bool, took time.Duration) {
	service, revision := unknown, unknown
	if w := o.source(); w != nil {
		service, revision = orUnknown(w.CanonicalName), orUnknown(w.CanonicalRevision)
	}
	if !o.counters.dnsClients.has(dnsClient{service, revision}) {
		service, revision = overflow, unknown
	}
	if !slices.Contains(dnsTypes[:], qtype) {
		qtype = "other"
	}
	o.counters.dnsRequests.WithLabelValues(qtype, proto, service, revision).Inc()
	if !forwarded {
		return
	}
	o.counters.dnsUpstream.WithLabelValues(qtype, proto, service, revision).Inc()
	o.counters.dnsDuration.WithLabelValues(qtype, proto, service, revision).Observe(took.Seconds())
	if failed {
		o.counters.dnsFailures.WithLabelValues(qtype, proto, service, revision).Inc()
	}
}

// dnsTypes are the record types with a label value of their own.
var dnsTypes = [...]string{
	"A", "AAAA", "CNAME", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT", "ANY", "CAA", "DNSKEY", "DS", "NAPTR",
}

// XDSObserver counts what the discovery client does. It fits source/xds's
// Observer.
type XDSObserver struct{ counters *counters }

// XDS returns the observer for the discovery client.
func (t *Telemetry) XDS() *XDSObserver { return &XDSObserver{&t.counters} }

// Terminated counts an end of the stream: ConnectionError, Error, Reconnect or
// Complete.
func (o *XDSObserver) Terminated(reason string) {
	o.counters.xdsTerminations.WithLabelValues(reason).Inc()
}

// Message counts a response for a type and its size in bytes.
func (o *XDSObserver) Message(typeURL string, bytes int) {
	o.counters.xdsMessages.WithLabelValues(typeURL).Inc()
	o.counters.xdsBytes.WithLabelValues(typeURL).Add(float64(bytes))
}
