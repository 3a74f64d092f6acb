package main

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// settled is the age from which a live flow counts as one that works: policy has judged it, and the application has
// answered, or it would have ended.
const settled = 15 * time.Second

// flows remembers who came to which port of which workload of this node, and was let in: `culvert authz suggest` makes
// policies of it. Outbound connections are the business of the other node's agent. Safe for concurrent use.
type flows struct{ seen *seenTable[flowKey] }

// flowKey is what connections have in common. With an identity, source is not used.
type flowKey struct {
	id          identity.ID
	source      party
	destination party
	port        uint16
}

func newFlows() *flows { return &flows{newSeenTable[flowKey]()} }

// closed notes a flow that has ended.
func (t *flows) closed(f *proxy.Flow) {
	if key, ok := flowKeyOf(f); ok && !f.Early && worked(f) {
		t.seen.note(key, f.Source.Addr.Addr().Unmap(), f.End)
	}
}

// worked reports whether a flow that has ended was let in and reached the application. One that a policy ended does not
// count, whatever it has carried: nobody wants it back.
func worked(f *proxy.Flow) bool {
	if f.Flag == proxy.FlagNone || f.Flag == proxy.FlagDeny {
		return f.Flag == proxy.FlagNone
	}
	toServer, toClient := f.Bytes()
	return toServer+toClient > 0
}

func flowKeyOf(f *proxy.Flow) (flowKey, bool) {
	if f.Direction != proxy.Inbound || f.Destination.Workload == nil {
		return flowKey{}, false
	}
	key := flowKey{id: f.Source.ID, destination: partyOf(&f.Destination), port: f.ActualDst.Port()}
	key.destination.account = ""
	if key.port == 0 {
		key.port = f.OriginalDst.Port()
	}
	if key.id.IsZero() {
		key.source = partyOf(&f.Source)
	}
	return key, true
}

// flowReport is the answer of /flows; `culvert authz suggest` reads it.
type flowReport struct {
	Since   time.Time       `json:"since"`
	Dropped uint64          `json:"dropped"` // connections that are not in the list because it was full
	Flows   []flowReporting `json:"flows"`
}

type flowReporting struct {
	Source      flowSource      `json:"source"`
	Destination flowDestination `json:"destination"`
	Port        uint16          `json:"port"`
	Count       uint64          `json:"count"`
	LastSeen    time.Time       `json:"lastSeen"`
}

type flowSource struct {
	Principal string `json:"principal,omitempty"` // without spiffe://
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Address   string `json:"address,omitempty"` // where it came from last
}

type flowDestination struct {
	Namespace string `json:"namespace"`
	Workload  string `json:"workload"`
}

// report lists what has ended, and of what lives those that have done so for a while.
func (t *flows) report(live []*proxy.Flow, now time.Time) flowReport {
	out := flowReport{Flows: []flowReporting{}}
	at := make(map[flowKey]int)
	add := func(key flowKey, addr netip.Addr, count uint64, last time.Time) {
		i, there := at[key]
		if !there {
			i = len(out.Flows)
			at[key] = i
			out.Flows = append(out.Flows, flowReporting{
				Source:      flowSource{Namespace: key.source.namespace, Workload: key.source.workload},
				Destination: flowDestination{key.destination.namespace, key.destination.workload}, Port: key.port,
			})
			if !key.id.IsZero() {
				out.Flows[i].Source.Principal = key.id.Principal()
			}
		}
		f := &out.Flows[i]
		f.Count += count
		if last.After(f.LastSeen) && addr.IsValid() {
			f.LastSeen, f.Source.Address = last.UTC(), addr.String()
		}
	}
	out.Since, out.Dropped = t.seen.each(func(key flowKey, e *seenEntry) { add(key, e.addr, e.count, e.last) })
	for _, f := range live {
		if key, ok := flowKeyOf(f); ok && now.Sub(f.Start) > settled {
			add(key, f.Source.Addr.Addr().Unmap(), 1, now)
		}
	}
	slices.SortFunc(out.Flows, func(a, b flowReporting) int {
		return cmp.Or(
			cmp.Compare(a.Destination.Namespace, b.Destination.Namespace), cmp.Compare(a.Destination.Workload, b.Destination.Workload),
			cmp.Compare(a.Port, b.Port), cmp.Compare(a.Source.Principal, b.Source.Principal),
			cmp.Compare(a.Source.Namespace, b.Source.Namespace), cmp.Compare(a.Source.Workload, b.Source.Workload), cmp.Compare(a.Source.Address, b.Source.Address))
	})
	return out
}

// samples emits what did not fit.
func (t *flows) samples(emit func(telemetry.Sample)) {
	emit(telemetry.Sample{Name: "culvert_flow_table_dropped_total", Help: "Connections that are not in the table of flows because it was full.", Counter: true, Value: float64(t.seen.dropped())})
}

// liveFlows are those of all pods.
func (n *node) liveFlows() []*proxy.Flow {
	var out []*proxy.Flow
	for _, p := range n.proxy.Pods() {
		out = append(out, p.Flows()...)
	}
	return out
}
