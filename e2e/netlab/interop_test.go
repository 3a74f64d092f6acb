package netlab_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// prepare puts the servers, services and the policy in place and writes the one workload file for everybody.
func (it *interop) prepare() map[*netlab.Pod]*servers {
	it.t.Helper()
	apps := map[*netlab.Pod]*servers{}
	for _, p := range []*netlab.Pod{it.client, it.local, it.remote} {
		apps[p] = it.serveInterop(p)
		it.AddService(ns, p.Name(), serviceOf(p), map[uint16]uint16{80: 8080}, p)
	}
	it.State.Policies = append(it.State.Policies, denyPort())
	it.apply()
	return apps
}

// TestInteropTraffic carries all kinds of traffic between the other implementation and Culvert, in both modes and both
// directions. All three agents read the same file.
func TestInteropTraffic(t *testing.T) {
	it := newInterop(t, "connections in both directions, the JSON access log (LOG_FORMAT) with the status or policy that refused one, answers 400, 401 and 503")
	apps := it.prepare()
	peer := it.startPeer(it.remote, it.StatePath())
	dedicated := it.startDedicated(it.local, it.StatePath())
	it.a = it.agent(nodeA)
	for _, w := range []*way{
		{"node_to_peer", it.client, it.remote, it.a, peer, true, apps[it.remote]},
		{"peer_to_node", it.remote, it.client, peer, it.a, false, apps[it.client]},
		{"dedicated_to_peer", it.local, it.remote, dedicated, peer, true, apps[it.remote]},
		{"peer_to_dedicated", it.remote, it.local, peer, dedicated, false, apps[it.local]},
	} {
		t.Run(w.name, func(t *testing.T) {
			for _, tt := range []struct {
				name string
				test func(*interop, *way)
			}{
				{"lines", (*interop).testLines},
				{"half_close", (*interop).testHalfClose},
				{"bulk", (*interop).testBulk},
				{"many", (*interop).testMany},
				{"abandoned", (*interop).testAbandoned},
				{"stalled", (*interop).testStalled},
				{"refusals", (*interop).testRefusals},
				{"aborts", (*interop).testAborts},
				{"statuses", (*interop).testStatuses},
				{"lines_afterwards", (*interop).testLines},
			} {
				t.Run(tt.name, func(t *testing.T) { tt.test(it.in(t), w) })
			}
		})
	}
}

// TestInteropIdle leaves a connection in each direction alone for longer than either implementation lets a PING go
// unanswered (the first after 10 s, 20 s for its answer).
func TestInteropIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than half a minute of waiting")
	}
	it := newInterop(t, "PINGs and answers to them")
	it.prepare()
	it.startPeer(it.remote, it.StatePath())
	it.a = it.agent(nodeA)
	both := it.bothWays()
	time.Sleep(35 * time.Second)
	for name, s := range both {
		if _, err := s.ask("after"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range both {
		it.finish(name, s)
	}
}

// bothWays opens a connection in each direction and uses it.
func (it *interop) bothWays() map[string]*session {
	it.t.Helper()
	both := map[string]*session{}
	for name, w := range map[string]*way{"to the peer": {from: it.client, to: it.remote}, "from the peer": {from: it.remote, to: it.client}} {
		both[name] = it.open(w, 8080)
		if _, err := both[name].ask("before"); err != nil {
			it.t.Fatalf("%s: %v", name, err)
		}
	}
	return both
}

// finish ends a connection in order.
func (it *interop) finish(name string, s *session) {
	it.t.Helper()
	if _, err := s.ask("last"); err != nil {
		it.t.Errorf("%s: %v", name, err)
		return
	}
	_ = s.CloseWrite()
	if rest, err := io.ReadAll(s.lines); err != nil || len(rest) > 0 {
		it.t.Errorf("%s: behind the last answer: %q, %v", name, rest, err)
	}
}

// usable asks over each connection for a while.
func (it *interop) usable(both map[string]*session, d time.Duration) {
	it.t.Helper()
	for began := time.Now(); time.Since(began) < d; time.Sleep(100 * time.Millisecond) {
		for name, s := range both {
			if _, err := s.ask("during"); err != nil {
				it.t.Fatalf("%s: %v after %v", name, err, time.Since(began))
			}
		}
	}
}

// The peer is told to stop: connections in both directions go on, new ones to it are refused, and it ends with the last.
func TestInteropPeerDrains(t *testing.T) {
	it := newInterop(t, "an orderly end at SIGTERM within CONNECTION_TERMINATION_DEADLINE")
	it.prepare()
	peer := it.startPeer(it.remote, it.StatePath(), "CONNECTION_TERMINATION_DEADLINE=60s")
	it.a = it.agent(nodeA)
	both := it.bothWays()
	if err := peer.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	it.eventually("refused by the peer", func() bool { _, err := it.call(it.client, at(it.remote)); return err != nil })
	it.usable(both, 2*time.Second)
	for name, s := range both {
		it.finish(name, s)
	}
	peer.ended(interopPatience)
	it.refused(it.client, at(it.remote))

	it.runPeer(it.remote, it.StatePath()) // the CA and the rules are there still
	it.mustCall(it.client, at(it.remote), "remote")
	it.mustCall(it.remote, at(it.client), "client")
}

// keepCalling makes one connection after the other, in both directions, until the returned function is called or one
// fails, which none may.
func (it *interop) keepCalling() (stop func()) {
	var wg sync.WaitGroup
	end := make(chan struct{})
	for _, w := range []*way{{from: it.client, to: it.remote}, {from: it.remote, to: it.client}} {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					it.t.Logf("%d calls from %s", n, w.from.Name())
					return
				default:
				}
				if _, err := it.call(w.from, at(w.to)); err != nil {
					it.t.Errorf("call %d from %s: %v", n, w.from.Name(), err)
					return
				}
			}
		})
	}
	return func() { close(end); wg.Wait() }
}

// Culvert is told to stop while its successor serves already: no connection in either direction breaks within the drain
// time, and the peer finds its way to the successor.
func TestInteropCulvertDrains(t *testing.T) {
	it := newInterop(t, "respect for GOAWAY, and another tunnel after it")
	it.prepare()
	it.startPeer(it.remote, it.StatePath())
	it.a = it.agent(nodeA, "--drain-timeout=60s")
	both := it.bothWays()
	next, err := it.LaunchAgent(nodeA, "--admin-address=127.0.0.1:25000", "--metrics-address=[::]:25020", "--ready-address=[::]:25021")
	if err != nil {
		t.Fatal(err)
	}
	err = next.Wait(interopPatience, "ready", func() (bool, error) {
		status, _, err := next.Get("25021", "/healthz/ready")
		return err == nil && status == http.StatusOK, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := it.keepCalling()
	if err := it.a.Process().Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	it.usable(both, 2*time.Second)
	stop()
	for name, s := range both {
		it.finish(name, s)
	}
	select {
	case <-it.a.Process().Done():
		if err := it.a.Process().Wait(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	case <-time.After(interopPatience):
		t.Error("the agent still runs after its last connection")
	}
	it.mustCall(it.remote, at(it.client), "client")
}

// The peer is killed: a truncated stream looks like a reset to Culvert's applications, at either end.
func TestInteropPeerDies(t *testing.T) {
	it := newInterop(t, "nothing but to be killed and started again")
	apps := it.prepare()
	peer := it.startPeer(it.remote, it.StatePath())
	it.a = it.agent(nodeA)
	out := it.open(&way{from: it.client, to: it.remote}, 8080)
	if _, err := out.ask("before"); err != nil {
		t.Fatal(err)
	}
	w := &way{from: it.remote, to: it.client, apps: apps[it.client]}
	in := it.open(w, abortPort)
	_, _ = io.WriteString(in, "await")
	if _, err := io.ReadFull(in, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if err := peer.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = out.SetDeadline(time.Now().Add(interopPatience))
	if _, err := out.Read(make([]byte, 1)); ending(err) != "reset" {
		t.Errorf("the client read %v, want a reset", err)
	}
	if got := it.seen(w); got != "reset" {
		t.Errorf("the server saw %q, want a reset", got)
	}
	it.refused(it.client, at(it.remote))
	it.runPeer(it.remote, it.StatePath())
	it.mustCall(it.client, at(it.remote), "remote")
	it.mustCall(it.remote, at(it.client), "client")
}

// TestInteropPostQuantum: a peer that takes nothing but X25519MLKEM768.
func TestInteropPostQuantum(t *testing.T) {
	it := newInterop(t, "COMPLIANCE_POLICY=pqc (X25519MLKEM768 only)")
	it.prepare()
	it.startPeer(it.remote, it.StatePath(), "COMPLIANCE_POLICY=pqc")
	it.a = it.agent(nodeA)
	it.mustCall(it.client, at(it.remote), "remote")
	it.mustCall(it.remote, at(it.client), "client")
}

// TestInteropBaggage: a server that does not know its client's workload names it by what the client's agent says.
func TestInteropBaggage(t *testing.T) {
	it := newInterop(t, "the source of a connection in its access log from the request's baggage, and baggage on requests of its own")
	it.prepare()
	peer := it.startPeer(it.remote, it.stateWithout(it.local))
	culvert := it.startDedicated(it.local, it.StatePath())
	it.client.SetCaptured(false)
	server := it.startDedicated(it.client, it.stateWithout(it.remote))
	it.mustCall(it.local, at(it.remote), "remote")
	it.mustCall(it.remote, at(it.client), "client")
	for _, w := range []*way{{from: it.local, to: it.remote, source: culvert, target: peer}, {from: it.remote, to: it.client, source: peer, target: server}} {
		r := it.logged(w.target, netlab.Record{"direction": "inbound", "src.identity": spiffe(w.from.Name()), "msg": "connection complete"})
		want := netlab.Record{"src.workload": w.from.Name(), "src.namespace": ns, "src.cluster": "cluster1"}
		if !matches(r, want) {
			t.Errorf("%s logged %v for a client that it does not know, want %v", w.to.Name(), r, want)
		}
	}
}

// stateWithout writes a workload file of its own that lacks a pod.
func (it *interop) stateWithout(p *netlab.Pod) string {
	it.t.Helper()
	state := it.State
	state.Workloads = slices.DeleteFunc(slices.Clone(state.Workloads), func(w *netlab.Workload) bool { return w == p.Workload })
	text, err := yaml.Marshal(state)
	if err != nil {
		it.t.Fatal(err)
	}
	path := filepath.Join(it.t.TempDir(), "workloads.yaml")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		it.t.Fatal(err)
	}
	return path
}
