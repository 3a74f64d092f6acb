package main

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/identity/ca/server"
	"github.com/culvert-mesh/culvert/workload/publish"
)

// figures counts what happens in discovery and the certificate service, under Istio's names where it has one. It
// implements the Observers of both.
type figures struct {
	converged *admin.Histogram
	issuing   *admin.Histogram

	mu       sync.Mutex
	streams  int
	counters map[counter]float64
}

// counter names a counter and the value of its label.
type counter struct{ name, label string }

var (
	_ publish.Observer = (*figures)(nil)
	_ server.Observer  = (*figures)(nil)
)

// described are the counters: their one label, if any, and what they count.
func described(name string) (label, help string) {
	switch name {
	case "pilot_xds_pushes":
		return "type", "Responses sent to agents."
	case "culvert_xds_resources_total":
		return "type", "Resources in responses sent to agents."
	case "culvert_xds_removals_total":
		return "type", "Removed resources in responses sent to agents."
	case "culvert_xds_bytes_total":
		return "type", "Bytes of responses sent to agents."
	case "pilot_total_xds_rejects":
		return "type", "Responses of which an agent could not take all."
	case "pilot_xds_expired_nonce":
		return "type", "Answers to other responses than the last."
	case "culvert_xds_refused_total":
		return "reason", "Streams refused or ended by the server."
	case "citadel_server_csr_count":
		return "", "Certificate requests."
	case "citadel_server_success_cert_issuance_count":
		return "", "Certificates issued."
	case "citadel_server_authentication_failure_count":
		return "", "Certificate requests of callers who could not show who they are."
	case "culvert_ca_requests_total":
		return "outcome", "Certificate requests by outcome."
	default:
		return "", ""
	}
}

func newFigures() *figures {
	return &figures{
		converged: admin.NewHistogram(.05, .1, .5, 1, 3, 5, 10, 20, 30),
		issuing:   admin.NewHistogram(.001, .005, .01, .05, .1, .5, 1, 5),
		counters:  make(map[counter]float64),
	}
}

func (f *figures) add(name, label string, by float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counters[counter{name, label}] += by
}

// Streams implements publish.Observer.
func (f *figures) Streams(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams = n
}

// Pushed implements publish.Observer.
func (f *figures) Pushed(typeURL string, resources, removed, bytes int) {
	kind := shortType(typeURL)
	f.add("pilot_xds_pushes", kind, 1)
	f.add("culvert_xds_resources_total", kind, float64(resources))
	f.add("culvert_xds_removals_total", kind, float64(removed))
	f.add("culvert_xds_bytes_total", kind, float64(bytes))
}

// Converged implements publish.Observer.
func (f *figures) Converged(age time.Duration) { f.converged.Observe(age.Seconds()) }

// Rejected implements publish.Observer.
func (f *figures) Rejected(typeURL string) { f.add("pilot_total_xds_rejects", shortType(typeURL), 1) }

// Expired implements publish.Observer.
func (f *figures) Expired(typeURL string) { f.add("pilot_xds_expired_nonce", shortType(typeURL), 1) }

// Refused implements publish.Observer.
func (f *figures) Refused(why publish.Refusal) { f.add("culvert_xds_refused_total", string(why), 1) }

// CertificateRequest implements server.Observer.
func (f *figures) CertificateRequest(outcome server.Outcome, took time.Duration) {
	f.issuing.Observe(took.Seconds())
	f.add("citadel_server_csr_count", "", 1)
	f.add("culvert_ca_requests_total", string(outcome), 1)
	switch outcome {
	case server.Issued:
		f.add("citadel_server_success_cert_issuance_count", "", 1)
	case server.Unauthenticated:
		f.add("citadel_server_authentication_failure_count", "", 1)
	}
}

// shortType is Istio's word for a type.
func shortType(typeURL string) string {
	switch typeURL {
	case publish.AddressType:
		return "wds"
	case publish.AuthorizationType:
		return "wads"
	case publish.NetworkPolicyType:
		return "netpol"
	default:
		return "other" // clients choose the words, but not the labels of metrics
	}
}

// emit gives the counters in order.
func (f *figures) emit(emit func(admin.Sample)) {
	f.mu.Lock()
	counters, streams := maps.Clone(f.counters), f.streams
	f.mu.Unlock()
	for _, c := range slices.SortedFunc(maps.Keys(counters), func(a, b counter) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.label, b.label))
	}) {
		label, help := described(c.name)
		s := admin.Sample{Name: c.name, Help: help, Counter: true, Value: counters[c]}
		if label != "" {
			s.Labels = []admin.Label{{Name: label, Value: c.label}}
		}
		emit(s)
	}
	emit(admin.Sample{Name: "pilot_xds", Help: "Agents that are connected.", Value: float64(streams)})
	emit(admin.Sample{Name: "pilot_proxy_convergence_time", Help: "Seconds from a change to an agent's answer that it has it.", Histogram: f.converged})
	emit(admin.Sample{Name: "culvert_ca_request_seconds", Help: "Seconds that certificate requests took.", Histogram: f.issuing})
}

// samples gives all figures of the controller.
func (c *controller) samples(emit func(admin.Sample)) {
	c.figures.emit(emit)
	snap := c.store.Snapshot()
	emit(admin.Sample{Name: "culvert_build_info", Help: "The program's version.", Labels: []admin.Label{{Name: "version", Value: version}, {Name: "revision", Value: revision}}, Value: 1})
	emit(admin.Sample{Name: "pilot_services", Help: "Services that are known.", Value: float64(snap.ServiceCount())})
	emit(admin.Sample{Name: "culvert_workloads", Help: "Workloads that are known.", Value: float64(snap.WorkloadCount())})
	emit(admin.Sample{Name: "culvert_policies", Help: "Policies that are known.", Value: float64(c.policies.Snapshot().Len())})
	if c.networks != nil {
		emit(admin.Sample{Name: "culvert_network_policies", Help: "NetworkPolicies and ClusterNetworkPolicies that are known.", Value: float64(c.networks.Snapshot().Policies())})
	}
	leading := 0.0
	if c.election.leading.Load() {
		leading = 1
	}
	emit(admin.Sample{Name: "culvert_leader", Help: "1 in the replica that writes.", Value: leading})
	emit(admin.Sample{Name: "culvert_status_failures_total", Help: "Failed attempts to write the status of an object.", Counter: true, Value: float64(c.statuses.Failed())})
	emit(admin.Sample{Name: "culvert_status_failing", Help: "Objects whose status could not be written yet; they go on being tried.", Value: float64(c.statuses.Failing())})
	if t := c.taints; t != nil {
		emit(admin.Sample{Name: "culvert_taints_removed_total", Help: "Nodes whose taint was removed.", Counter: true, Value: float64(t.removed.Load())})
		emit(admin.Sample{Name: "culvert_taint_failures_total", Help: "Failed attempts to remove a node's taint.", Counter: true, Value: float64(t.failed.Load())})
	}
	if w := c.companion; w != nil {
		emit(admin.Sample{Name: "culvert_netpol_companions_written_total", Help: "Companions of NetworkPolicies that were created, changed or deleted.", Counter: true, Value: float64(w.Written())})
		emit(admin.Sample{Name: "culvert_netpol_companion_failures_total", Help: "Failed attempts at that.", Counter: true, Value: float64(w.Failed())})
	}
	st := c.authority.Status()
	trouble := 0.0
	if st.Trouble != nil {
		trouble = 1
	}
	emit(admin.Sample{Name: "culvert_ca_trouble", Help: "1 while something stands in the way of the certificate authority.", Value: trouble})
	if st.NotAfter.IsZero() {
		return
	}
	emit(admin.Sample{Name: "citadel_server_cert_chain_expiry_timestamp", Help: "Unix time at which what signs certificates ends.", Value: float64(st.NotAfter.Unix())})
	var first time.Time
	for _, r := range c.authority.Bundle().Certificates() {
		if first.IsZero() || r.NotAfter.Before(first) {
			first = r.NotAfter
		}
	}
	if !first.IsZero() {
		emit(admin.Sample{Name: "citadel_server_root_cert_expiry_timestamp", Help: "Unix time at which the first of the roots ends.", Value: float64(first.Unix())})
	}
}
