package authz

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/identity"
)

// Flow is one kind of connection that was seen: who came to which port of which workload.
type Flow struct {
	Source      FlowSource      `json:"source"`
	Destination FlowDestination `json:"destination"`
	// Port is that of the pod; 0 when it is not known, as metrics do not tell it.
	Port     uint16    `json:"port,omitempty"`
	Count    uint64    `json:"count"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
}

// FlowSource is who connects.
type FlowSource struct {
	// Principal is the proven identity without "spiffe://"; empty for plaintext.
	Principal string `json:"principal,omitempty"`
	// Namespace and Workload are what is known about the address.
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Address   string `json:"address,omitempty"`
}

// FlowDestination is a workload as its owner calls it, and the Service that was addressed, if that is known.
type FlowDestination struct {
	Namespace        string `json:"namespace"`
	Workload         string `json:"workload"`
	ServiceNamespace string `json:"serviceNamespace,omitempty"`
	Service          string `json:"service,omitempty"`
}

// Flows are those that agents have seen, or that somebody has made of metrics.
type Flows struct {
	// Since is from when on connections were watched; zero if that is not known.
	Since time.Time `json:"since,omitzero"`
	// Dropped counts connections that are not among the flows, because the agents' tables were full.
	Dropped uint64 `json:"dropped,omitempty"`
	Flows   []Flow `json:"flows"`
	// Missing says of whom nothing is known. Not empty: flows may be missing.
	Missing []string `json:"missing,omitempty"`
}

// String names the flow for a person.
func (f *Flow) String() string {
	port := ""
	if f.Port != 0 {
		port = fmt.Sprintf(" port %d", f.Port)
	}
	return f.Source.String() + " -> " + f.Destination.Namespace + "/" + f.Destination.Workload + port
}

// String names the source.
func (s *FlowSource) String() string {
	if s.Principal != "" {
		return s.Principal
	}
	name := cmp.Or(s.Address, "unknown")
	if s.Workload != "" {
		name = s.Namespace + "/" + s.Workload
	}
	return name + " (plaintext)"
}

// maxFlows bounds how many flows are taken.
const maxFlows = 1_000_000

// ParseFlows reads a document of flows, such as `culvert authz suggest -o flows` writes and agents answer at /flows.
func ParseFlows(text []byte) (*Flows, error) {
	var f Flows
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	if f.Flows == nil {
		return nil, errors.New(`read flows: there is no list "flows"`)
	}
	if len(f.Flows) > maxFlows {
		return nil, fmt.Errorf("read flows: there are more than %d", maxFlows)
	}
	for i := range f.Flows {
		if err := f.Flows[i].check(); err != nil {
			return nil, fmt.Errorf("read flows: flow %d: %w", i, err)
		}
	}
	return &f, nil
}

func (f *Flow) check() error {
	if f.Destination.Namespace == "" || f.Destination.Workload == "" {
		return errors.New("it has no destination")
	}
	if f.Source.Principal != "" {
		if _, err := identity.Parse("spiffe://" + f.Source.Principal); err != nil {
			return err
		}
	}
	return nil
}

// MergeFlows joins what several watchers have seen, in an order of its own. A connection is seen by one agent only, so counts
// are added.
func MergeFlows(all ...*Flows) *Flows {
	type id struct {
		source      FlowSource
		destination FlowDestination
		port        uint16
	}
	out := &Flows{Flows: []Flow{}}
	at := make(map[id]int)
	for _, one := range all {
		for _, flow := range one.Flows {
			key := id{flow.Source, flow.Destination, flow.Port}
			if key.source.Principal != "" || key.source.Workload != "" {
				key.source.Address = "" // the last of many
			}
			i, there := at[key]
			if !there {
				at[key] = len(out.Flows)
				out.Flows = append(out.Flows, flow)
				continue
			}
			have := &out.Flows[i]
			have.Count += flow.Count
			if flow.LastSeen.After(have.LastSeen) {
				have.LastSeen, have.Source.Address = flow.LastSeen, flow.Source.Address
			}
		}
		out.Dropped += one.Dropped
		if one.Since.After(out.Since) {
			out.Since = one.Since
		}
		out.Missing = append(out.Missing, one.Missing...)
	}
	slices.SortFunc(out.Flows, compareFlows)
	return out
}

func compareFlows(a, b Flow) int {
	return cmp.Or(
		cmp.Compare(a.Destination.Namespace, b.Destination.Namespace), cmp.Compare(a.Destination.Workload, b.Destination.Workload),
		cmp.Compare(a.Port, b.Port), cmp.Compare(a.Source.String(), b.Source.String()), cmp.Compare(a.Source.Address, b.Source.Address),
		cmp.Compare(a.Destination.Service, b.Destination.Service),
	)
}
