package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

const podUID = "6f2a4c1e-0b7d-4e9a-9c35-1d2e3f4a5b6c" // of the API server's pod that runs

// TestSuccessor: until an agent is ready to serve, the earlier one of the node has the connections of the pods that run, the
// pods that start, and the word about all of them. The new agent of an upgrade may never be ready.
func TestSuccessor(t *testing.T) {
	netnstest.Require(t)
	const stateless = "--xds-address=127.0.0.1:1 --xds-root-ca=SYSTEM"
	for _, tt := range []struct {
		name, state, said string
		ready, alone      bool // the agent is ready; the earlier one ends
	}{
		{name: "not_ready", state: stateless, said: "enabled"},
		{name: "not_ready_alone", state: stateless, said: "enabled", alone: true},
		{name: "ready", state: "--workloads=mesh.yaml", ready: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files(t)
			if err := os.WriteFile("mesh.yaml", []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			api := newPodAPI(t, tt.said)
			e := newEarlierAgent(t)
			n := startNode(t, "--kubernetes --node=n1 --proc-root="+e.procfs+" --kubeconfig="+api.kubeconfig+" --handoff-socket="+e.path+
				" --ca-address=127.0.0.1:1 --ca-root-ca=SYSTEM --admin-address=127.0.0.1:0 --metrics-address=127.0.0.1:0 --ready-address=127.0.0.1:0 "+tt.state)
			<-n.cluster.agent.Listed()
			if tt.alone {
				e.end()
			}
			if !tt.ready && !tt.alone {
				taken := map[string]bool{}
				for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
					for _, what := range e.lacks(t, api) {
						taken[what] = true
					}
				}
				for what := range taken {
					t.Errorf("the agent is not ready, and has taken %s", what)
				}
				return
			}
			within(t, "it takes over from the earlier agent", func() bool {
				pods := n.set.Pods()
				return len(pods) == 1 && pods[0].State == podset.Enrolled && !n.cluster.superseded()
			})
		})
	}
}

// earlierAgent is an agent that serves a pod already.
type earlierAgent struct {
	path      string // of its hand-off socket
	procfs    string // where the pod is found
	pod, peer *netns.NS
	served    chan struct{} // a connection
	end       func()
}

func newEarlierAgent(t *testing.T) *earlierAgent {
	t.Helper()
	e := &earlierAgent{path: filepath.Join(t.TempDir(), "agent", "s"), procfs: t.TempDir(), pod: netnstest.New(t), peer: netnstest.New(t), served: make(chan struct{}, 1)}
	netnstest.Veth(t,
		netnstest.End{NS: e.peer, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
		netnstest.End{NS: e.pod, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}})
	linkNamespace(t, netnstest.New(t), filepath.Join(e.procfs, "1", "ns"))
	linkNamespace(t, e.pod, filepath.Join(e.procfs, "77", "ns"))
	for name, text := range map[string]string{
		"cgroup": "0::/kubepods/pod" + podUID + "/" + strings.Repeat("ab", 32) + "\n",
		"stat":   "77 (app) S" + strings.Repeat(" 1", 40) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(e.procfs, "77", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := e.pod.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0, packetMark)
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Listen(fd, netip.AddrPortFrom(netip.IPv6Unspecified(), proxy.HBONEPort), true); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	server, err := handoff.Listen(handoff.Config{Path: e.path, Handler: e})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = server.Run(ctx) })
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			e.served <- struct{}{}
		}
	})
	e.end = sync.OnceFunc(func() { cancel(); _ = l.Close(); running.Wait() })
	t.Cleanup(e.end)
	return e
}

// lacks says what the earlier agent has not any more.
func (e *earlierAgent) lacks(t *testing.T, api *podAPI) (all []string) {
	c, err := netnstest.Dial(t, e.peer, "tcp", netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), proxy.HBONEPort).String(), netnstest.Options{})
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = c.Close() }()
	select {
	case <-e.served:
	case <-time.After(time.Second):
		all = append(all, "a connection of a pod that runs")
	}
	client, err := handoff.Dial(t.Context(), e.path)
	if err != nil {
		return append(all, err.Error())
	}
	defer func() { _ = client.Close() }()
	if list, err := client.List(t.Context()); err != nil || len(list) != 1 || list[0].Pod.Name != "earlier" {
		all = append(all, "the pods that start")
	}
	if said := api.told(); len(said) > 0 {
		all = append(all, fmt.Sprintf("the word: pods are %q", said))
	}
	return all
}

// Add implements handoff.Handler.
func (*earlierAgent) Add(_ context.Context, _ handoff.Pod, ns *netns.NS) error { return ns.Close() }

// Remove implements handoff.Handler.
func (*earlierAgent) Remove(context.Context, string) error { return nil }

// List implements handoff.Handler: the agent is known by it.
func (*earlierAgent) List() []handoff.Status {
	return []handoff.Status{{Pod: handoff.Pod{Name: "earlier"}}}
}

// startNode runs an agent until the end of the test.
func startNode(t *testing.T, args string) *node {
	t.Helper()
	s, set, err := readSettings(strings.Fields(args))
	if err != nil {
		t.Fatal(err)
	}
	levels, err := admin.NewLevels("error")
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(s, set, levels, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

// podAPI is an API server with a pod that runs and one whose processes nobody finds.
type podAPI struct {
	kubeconfig, before string // what pods are called at first

	mu   sync.Mutex
	said []string // what they are called then
}

func (a *podAPI) told() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.said)
}

func newPodAPI(t *testing.T, before string) *podAPI {
	t.Helper()
	a := &podAPI{before: before}
	srv := httptest.NewServer(a)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	a.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"a",
"clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"a","context":{"cluster":"c"}}]}`, srv.URL)
	if err := os.WriteFile(a.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// ServeHTTP implements http.Handler.
func (a *podAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodPatch {
		body, _ := io.ReadAll(r.Body)
		var p struct {
			Metadata struct{ Annotations map[string]string }
		}
		_ = json.Unmarshal(body, &p)
		a.mu.Lock()
		a.said = append(a.said, p.Metadata.Annotations["ambient.istio.io/redirection"])
		a.mu.Unlock()
		_, _ = io.WriteString(w, `{"kind":"Pod","apiVersion":"v1"}`)
		return
	}
	kind, items := "Node", []string(nil)
	switch filepath.Base(r.URL.Path) {
	case "namespaces":
		kind, items = "Namespace", []string{`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"team","uid":"n","resourceVersion":"1","labels":{"istio.io/dataplane-mode":"ambient"}}}`}
	case "pods":
		const form = `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"team","name":%q,"uid":%q,"resourceVersion":"1",
			"annotations":{"ambient.istio.io/redirection":%q}},"spec":{"nodeName":"n1"},"status":{"phase":"Running","podIP":%q}}`
		items = []string{fmt.Sprintf(form, "a", podUID, a.before, "10.0.0.2"), fmt.Sprintf(form, "lost", "u2", a.before, "10.0.0.3")}
		kind = "Pod"
	case "nodes":
	default:
		http.NotFound(w, r)
		return
	}
	if r.URL.Query().Get("watch") == "" {
		_, _ = fmt.Fprintf(w, `{"kind":"%sList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[%s]}`, kind, strings.Join(items, ","))
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, item := range items {
			_, _ = fmt.Fprintf(w, `{"type":"ADDED","object":%s}`, item)
		}
		_, _ = fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":%q,"apiVersion":"v1","metadata":{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}}`, kind)
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}
