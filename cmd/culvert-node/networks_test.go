package main

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// A server that has no network policies to tell of is complained of once, and what it says late still counts.
func TestFollowNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(workloadtest.Log)
		n := &node{log: slog.New(slog.NewTextHandler(log, nil)), settings: &settings{}, networks: netpol.New()}
		done := make(chan error)
		go func() { done <- n.followNetworks(t.Context()) }()
		time.Sleep(networkPatience - time.Second)
		synctest.Wait()
		if text := log.String(); text != "" {
			t.Errorf("it says too early: %s", text)
		}
		time.Sleep(10 * networkPatience)
		synctest.Wait()
		if text := log.String(); strings.Count(text, "level=WARN") != 1 || strings.Count(text, "\n") != 1 {
			t.Errorf("after a while it has said: %s", text)
		}
		n.networks.Apply([]netpol.Object{&netpol.Policy{Namespace: "a", Name: "p", Ingress: true}}, nil)
		n.networks.SetReady(true)
		if err := <-done; err != nil || !strings.Contains(log.String(), "network policies are known") {
			t.Errorf("%v: %s", err, log.String())
		}
	})
}

// A server that knows nothing of them is the reason that readiness names, until another one tells of them.
func TestReadinessNamesNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lacks := true
		n := &node{log: slog.New(slog.DiscardHandler), settings: &settings{}, networks: netpol.New(), lacksNetworks: func() bool { return lacks }}
		n.ready.Block(waitState)
		done := make(chan error)
		go func() { done <- n.followNetworks(t.Context()) }()
		time.Sleep(networkPatience - time.Second)
		synctest.Wait()
		if got := n.ready.Pending(); !slices.Equal(got, []string{waitState}) {
			t.Errorf("too early: %q", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := n.ready.Pending(); !slices.Equal(got, []string{waitNetworks, waitState}) {
			t.Errorf("after a while: %q", got)
		}
		n.networks.SetReady(true)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := n.ready.Pending(); !slices.Equal(got, []string{waitState}) {
			t.Errorf("when they are known: %q", got)
		}
	})
}

func TestDumpNetworks(t *testing.T) {
	dump := func(n *node) string {
		t.Helper()
		v, err := n.dumpNetworks()
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	n := &node{settings: &settings{}}
	if got := dump(n); !strings.HasPrefix(got, `{"evaluated":false,"state":"not evaluated: left to the CNI`) || !strings.Contains(got, `"objects":[]`) {
		t.Errorf("without: %s", got)
	}
	n.networks = netpol.New()
	n.networks.Apply([]netpol.Object{
		&netpol.Policy{Tier: netpol.Namespaced, Namespace: "a", Name: "p", Ingress: true},
		&netpol.Policy{Tier: netpol.Namespaced, Namespace: "a", Name: "broken", Ingress: true, Pods: netpol.Selector{Requirements: []netpol.Requirement{{Key: "k", Op: 99}}}},
	}, nil)
	if got := dump(n); !strings.HasPrefix(got, `{"evaluated":true,"state":"evaluated","ready":false`) || !strings.Contains(got, `"faults":{`) || strings.Count(got, `"broken"`) != 1 {
		t.Errorf("with: %s", got)
	}
}
