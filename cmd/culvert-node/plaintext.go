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

// maxPlaintextSeries bounds the series of the metric: strangers decide how many sources there are.
const maxPlaintextSeries = 1000

// plaintext remembers who speaks to whom without mTLS: whom a STRICT policy would shut out. Connections from pods to
// what the mesh does not know are no concern of it. Safe for concurrent use.
type plaintext struct {
	seen   *seenTable[plaintextKey]
	mu     sync.Mutex
	series map[seriesKey]uint64
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

func newPlaintext() *plaintext {
	return &plaintext{seen: newSeenTable[plaintextKey](), series: map[seriesKey]uint64{}}
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
	t.count(key)
	t.seen.note(key, addr, now)
}

func (t *plaintext) count(key plaintextKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := seriesKey{
		key.direction, cmp.Or(key.source.namespace, "unknown"), cmp.Or(key.source.workload, "unknown"),
		cmp.Or(key.destination.namespace, "unknown"), cmp.Or(key.destination.workload, "unknown"),
	}
	if _, there := t.series[s]; !there && len(t.series) >= maxPlaintextSeries {
		s = seriesKey{key.direction, "overflow", "overflow", "overflow", "overflow"}
	}
	t.series[s]++
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
	out := plaintextReport{Connections: []plaintextReporting{}}
	out.Since, out.Overflow = t.seen.each(func(k plaintextKey, e *seenEntry) {
		r := plaintextReporting{
			Direction: k.direction.String(), Source: k.source.reported(), Destination: k.destination.reported(), Port: k.port,
			Count: e.count, FirstSeen: e.first.UTC(), LastSeen: e.last.UTC(),
		}
		if e.addr.IsValid() {
			r.Source.Address = e.addr.String()
		}
		out.Connections = append(out.Connections, r)
	})
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
