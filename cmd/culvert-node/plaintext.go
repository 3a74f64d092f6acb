package main

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// Bounds of the plaintext table: strangers decide how many sources there are.
const (
	maxPlaintext       = 4000
	maxPlaintextSeries = 1000
	plaintextAge       = time.Hour // after which a full table gives up an entry
)

// plaintext remembers who speaks to whom without mTLS: whom a STRICT policy would shut out. Connections from pods to
// what the mesh does not know are no concern of it. Safe for concurrent use.
type plaintext struct {
	mu       sync.Mutex
	entries  map[plaintextKey]*plaintextEntry
	series   map[seriesKey]uint64
	overflow uint64 // connections that had no place
	swept    time.Time
	since    time.Time
}

// party is an end of a connection: a workload as its owner calls it, or an address that nobody knows.
type party struct {
	namespace, workload, account string
	addr                         netip.Addr // only of an unknown one
}

type plaintextKey struct {
	direction           proxy.Direction
	source, destination party
	port                uint16
}

type seriesKey struct {
	direction                                                  proxy.Direction
	sourceNamespace, source, destinationNamespace, destination string
}

type plaintextEntry struct {
	count       uint64
	first, last time.Time
	addr        netip.Addr // of the last source
}

func newPlaintext() *plaintext {
	return &plaintext{entries: map[plaintextKey]*plaintextEntry{}, series: map[seriesKey]uint64{}, since: time.Now()}
}

func partyOf(p *proxy.Peer) party {
	if w := p.Workload; w != nil {
		return party{namespace: w.Namespace, workload: cmp.Or(w.WorkloadName, w.Name), account: w.ServiceAccount}
	}
	return party{addr: p.Addr.Addr().Unmap()}
}

// saw notes a connection whose ends are known.
func (t *plaintext) saw(f *proxy.Flow) {
	if f.Protocol != proxy.TCP || f.Destination.Workload == nil || f.Early {
		return
	}
	if f.Direction == proxy.Outbound && f.Destination.Workload.Protocol == workload.HBONE && f.Err != nil {
		return // it was refused, not sent in clear
	}
	port := f.ActualDst.Port()
	if port == 0 {
		port = f.OriginalDst.Port()
	}
	key := plaintextKey{f.Direction, partyOf(&f.Source), partyOf(&f.Destination), port}
	t.note(key, f.Source.Addr.Addr().Unmap(), time.Now())
}

func (t *plaintext) note(key plaintextKey, addr netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.countLocked(key)
	e := t.entries[key]
	if e == nil {
		if len(t.entries) >= maxPlaintext && !t.sweepLocked(now) {
			t.overflow++
			return
		}
		e = &plaintextEntry{first: now}
		t.entries[key] = e
	}
	e.count++
	e.last, e.addr = now, addr
}

func (t *plaintext) countLocked(key plaintextKey) {
	s := seriesKey{
		key.direction, cmp.Or(key.source.namespace, "unknown"), cmp.Or(key.source.workload, "unknown"),
		cmp.Or(key.destination.namespace, "unknown"), cmp.Or(key.destination.workload, "unknown"),
	}
	if _, there := t.series[s]; !there && len(t.series) >= maxPlaintextSeries {
		s = seriesKey{key.direction, "overflow", "overflow", "overflow", "overflow"}
	}
	t.series[s]++
}

// sweepLocked makes room, at most once a minute, and reports whether there is some.
func (t *plaintext) sweepLocked(now time.Time) bool {
	if now.Sub(t.swept) < time.Minute {
		return false
	}
	t.swept = now
	for key, e := range t.entries {
		if now.Sub(e.last) > plaintextAge {
			delete(t.entries, key)
		}
	}
	return len(t.entries) < maxPlaintext
}

// plaintextReport is the answer of /plaintext; `culvert plaintext` reads it.
type plaintextReport struct {
	Since       time.Time            `json:"since"`
	Overflow    uint64               `json:"overflow"` // connections that are not in the list because it was full
	Connections []plaintextReporting `json:"connections"`
}

type plaintextReporting struct {
	Direction   string         `json:"direction"` // of the pod on this node: inbound or outbound
	Source      plaintextParty `json:"source"`
	Destination plaintextParty `json:"destination"`
	Port        uint16         `json:"port"`
	Count       uint64         `json:"count"`
	FirstSeen   time.Time      `json:"firstSeen"`
	LastSeen    time.Time      `json:"lastSeen"`
}

type plaintextParty struct {
	Namespace      string `json:"namespace,omitempty"`
	Workload       string `json:"workload,omitempty"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
	Address        string `json:"address,omitempty"` // of a source: where it came from last
}

// report lists all, those seen last first.
func (t *plaintext) report() plaintextReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := plaintextReport{Since: t.since.UTC(), Overflow: t.overflow, Connections: []plaintextReporting{}}
	for k, e := range t.entries {
		r := plaintextReporting{
			Direction: k.direction.String(), Source: k.source.reported(), Destination: k.destination.reported(), Port: k.port,
			Count: e.count, FirstSeen: e.first.UTC(), LastSeen: e.last.UTC(),
		}
		if e.addr.IsValid() {
			r.Source.Address = e.addr.String()
		}
		out.Connections = append(out.Connections, r)
	}
	slices.SortFunc(out.Connections, func(a, b plaintextReporting) int {
		return cmp.Or(b.LastSeen.Compare(a.LastSeen), cmp.Compare(a.Source.Namespace+a.Source.Workload+a.Source.Address, b.Source.Namespace+b.Source.Workload+b.Source.Address),
			cmp.Compare(a.Destination.Namespace+a.Destination.Workload, b.Destination.Namespace+b.Destination.Workload), cmp.Compare(a.Port, b.Port))
	})
	return out
}

func (p party) reported() plaintextParty {
	out := plaintextParty{Namespace: p.namespace, Workload: p.workload, ServiceAccount: p.account}
	if p.addr.IsValid() {
		out.Address = p.addr.String()
	}
	return out
}

// samples emits the counters, whose labels are workloads and never addresses.
func (t *plaintext) samples(emit func(telemetry.Sample)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, n := range t.series {
		emit(telemetry.Sample{
			Name: "culvert_plaintext_connections_total", Help: "Connections without mTLS between ends of which the mesh knows at least the destination.", Counter: true,
			Labels: []telemetry.Label{
				{Name: "direction", Value: k.direction.String()},
				{Name: "source_workload_namespace", Value: k.sourceNamespace}, {Name: "source_workload", Value: k.source},
				{Name: "destination_workload_namespace", Value: k.destinationNamespace}, {Name: "destination_workload", Value: k.destination},
			},
			Value: float64(n),
		})
	}
}
