package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
)

// Party is an end of a connection: a workload as its owner calls it, or an address that the mesh does not know.
type Party struct {
	Namespace      string `json:"namespace,omitempty"`
	Workload       string `json:"workload,omitempty"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// Address is where a source came from last.
	Address string `json:"address,omitempty"`
}

// String is namespace/workload, or the address of somebody unknown.
func (p Party) String() string {
	if p.Workload == "" {
		return cmp.Or(p.Address, "unknown")
	}
	return p.Namespace + "/" + p.Workload
}

// Plain is one pair of ends that speak plaintext.
type Plain struct {
	Source      Party  `json:"source"`
	Destination Party  `json:"destination"`
	Port        uint16 `json:"port"`
	// Count is how many connections were seen since the agents started.
	Count     uint64    `json:"count"`
	FirstSeen time.Time `json:"firstSeen"`
	LastSeen  time.Time `json:"lastSeen"`
	// Nodes are those whose agents saw it, sorted.
	Nodes []string `json:"nodes"`
}

// Report is what all agents together have seen.
type Report struct {
	// Since is from when on every agent has watched; what was before is not known.
	Since time.Time `json:"since"`
	// Overflow counts connections that found an agent's table full.
	Overflow uint64 `json:"overflow,omitempty"`
	// Connections is never nil; who spoke last comes first.
	Connections []Plain `json:"connections"`
	// Agents is how many were asked with success.
	Agents int `json:"agents"`
	// Missing says of which nodes nothing is known, and why. Not empty: the list may lack something.
	Missing []string `json:"missing,omitempty"`
}

// answer is what an agent says at /plaintext.
type answer struct {
	Since       time.Time `json:"since"`
	Overflow    uint64    `json:"overflow"`
	Connections []struct {
		Direction string `json:"direction"`
		Plain
	} `json:"connections"`
}

// ErrNoAgents says that there is nobody to ask.
var ErrNoAgents = errors.New("no agents found: is Culvert installed in this namespace?")

// Plaintext asks every agent who speaks plaintext to whom and merges the answers.
func Plaintext(ctx context.Context, a *access.Access, agents Agents, namespace string) (*Report, error) {
	pods, err := agentPods(ctx, a, namespace)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, ErrNoAgents
	}
	m := merger{seen: map[plainKey]*both{}, report: Report{Connections: []Plain{}}}
	for _, pod := range pods {
		if pod.Status.Phase != corev1.PodRunning {
			m.missing(&pod, fmt.Errorf("its agent is %s", pod.Status.Phase))
		}
	}
	each(ctx, pods, func(ctx context.Context, pod *corev1.Pod) {
		body, err := agents.Get(ctx, namespace, pod.Name, "/plaintext")
		if err != nil {
			m.missing(pod, err)
			return
		}
		var one answer
		if err := json.Unmarshal(body, &one); err != nil {
			m.missing(pod, fmt.Errorf("read its answer: %w", err))
			return
		}
		m.add(pod.Spec.NodeName, &one)
	})
	return m.finish(), nil
}

// merger joins answers. A connection between two enrolled pods is seen at both of its ends, so the two directions are
// counted apart and the larger count is taken.
type merger struct {
	mu     sync.Mutex
	seen   map[plainKey]*both
	report Report
}

type plainKey struct {
	source, destination string
	port                uint16
}

type both struct {
	plain    Plain
	in, outs uint64
}

func (m *merger) missing(pod *corev1.Pod, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report.Missing = append(m.report.Missing, fmt.Sprintf("node %s: %s", pod.Spec.NodeName, Clean(err.Error())))
}

func (m *merger) add(node string, a *answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report.Agents++
	m.report.Overflow += a.Overflow
	if a.Since.After(m.report.Since) {
		m.report.Since = a.Since
	}
	for _, c := range a.Connections {
		p := c.Plain
		p.Source, p.Destination = cleanParty(p.Source), cleanParty(p.Destination)
		key := plainKey{p.Source.String() + "|" + p.Source.ServiceAccount, p.Destination.String(), p.Port}
		b := m.seen[key]
		if b == nil {
			p.Nodes = nil
			b = &both{plain: p}
			m.seen[key] = b
		}
		if c.Direction == "inbound" {
			b.in += p.Count
		} else {
			b.outs += p.Count
		}
		b.join(p, node)
	}
}

// join widens what is known of a pair by one agent's entry.
func (b *both) join(p Plain, node string) {
	if p.FirstSeen.Before(b.plain.FirstSeen) {
		b.plain.FirstSeen = p.FirstSeen
	}
	if p.LastSeen.After(b.plain.LastSeen) {
		b.plain.LastSeen = p.LastSeen
		b.plain.Source.Address = cmp.Or(p.Source.Address, b.plain.Source.Address)
	}
	if !slices.Contains(b.plain.Nodes, node) {
		b.plain.Nodes = append(b.plain.Nodes, node)
	}
}

func (m *merger) finish() *Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.seen {
		b.plain.Count = max(b.in, b.outs)
		slices.Sort(b.plain.Nodes)
		m.report.Connections = append(m.report.Connections, b.plain)
	}
	slices.SortFunc(m.report.Connections, func(a, b Plain) int {
		return cmp.Or(b.LastSeen.Compare(a.LastSeen), cmp.Compare(a.Source.String(), b.Source.String()),
			cmp.Compare(a.Destination.String(), b.Destination.String()), cmp.Compare(a.Port, b.Port))
	})
	slices.Sort(m.report.Missing)
	return &m.report
}

func cleanParty(p Party) Party {
	return Party{Namespace: Clean(p.Namespace), Workload: Clean(p.Workload), ServiceAccount: Clean(p.ServiceAccount), Address: Clean(p.Address)}
}
