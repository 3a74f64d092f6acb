package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// TestSuccessor: until an agent is ready to serve, pods start with the earlier one, and what they are called is the earlier
// one's to say. The new one of an upgrade may never be ready.
func TestSuccessor(t *testing.T) {
	netnstest.Require(t)
	const stateless = "--xds-address=127.0.0.1:1 --xds-root-ca=SYSTEM"
	for _, tt := range []struct {
		name, state string
		alone       bool   // the earlier agent ends
		by          string // who pods start with then
		say         []string
	}{
		{name: "not_ready", state: stateless, by: "earlier"},
		{name: "not_ready_alone", state: stateless, alone: true},
		{name: "ready", state: "--workloads=mesh.yaml", say: []string{"pending"}}, // nobody finds its processes
	} {
		t.Run(tt.name, func(t *testing.T) {
			files(t)
			if err := os.WriteFile("mesh.yaml", []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			api := newPodAPI(t)
			path := filepath.Join(t.TempDir(), "agent", "s")
			earlier, err := handoff.Listen(handoff.Config{Path: path, Handler: earlierAgent{}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, end := context.WithCancel(context.WithoutCancel(t.Context()))
			ended := make(chan error, 1)
			go func() { ended <- earlier.Run(ctx) }()
			n := startNode(t, "--kubernetes --node=n1 --proc-root=. --kubeconfig="+api.kubeconfig+" --handoff-socket="+path+
				" --ca-address=127.0.0.1:1 --ca-root-ca=SYSTEM --admin-address=127.0.0.1:0 --metrics-address=127.0.0.1:0 --ready-address=127.0.0.1:0 "+tt.state)
			<-n.cluster.agent.Ready()
			if tt.alone {
				end()
			}
			eventually(t, func() string {
				by, said := servedBy(t, path), api.told()
				if by != tt.by || tt.by != "" && len(said) > 0 || len(tt.say) > 0 && !slices.Equal(said, tt.say) {
					return fmt.Sprintf("pods start with the %q agent, want %q; this one says of a pod that it is %q, want %q", by, tt.by, said, tt.say)
				}
				return ""
			})
			end()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
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

func eventually(t *testing.T, f func() string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		why := f()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(why)
		}
	}
}

// servedBy tells which agent has the path: the "earlier" one, "" for the other one.
func servedBy(t *testing.T, path string) string {
	t.Helper()
	c, err := handoff.Dial(t.Context(), path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	list, err := c.List(t.Context())
	if err != nil {
		return err.Error()
	}
	for _, st := range list {
		return st.Pod.Name
	}
	return ""
}

// earlierAgent is known by its list.
type earlierAgent struct{}

func (earlierAgent) Add(_ context.Context, _ handoff.Pod, ns *netns.NS) error { return ns.Close() }
func (earlierAgent) Remove(context.Context, string) error                     { return nil }
func (earlierAgent) List() []handoff.Status {
	return []handoff.Status{{Pod: handoff.Pod{Name: "earlier"}}}
}

// podAPI is an API server with one pod, which is called enabled and whose processes nobody finds.
type podAPI struct {
	kubeconfig string

	mu   sync.Mutex
	said []string // what the pod is called then
}

func (a *podAPI) told() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.said)
}

func newPodAPI(t *testing.T) *podAPI {
	a := &podAPI{}
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
	kind, items := "Node", ""
	switch filepath.Base(r.URL.Path) {
	case "namespaces":
		kind, items = "Namespace", `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"team","uid":"n","resourceVersion":"1","labels":{"istio.io/dataplane-mode":"ambient"}}}`
	case "pods":
		kind, items = "Pod", `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"team","name":"a","uid":"u1","resourceVersion":"1",
			"annotations":{"ambient.istio.io/redirection":"enabled"}},"spec":{"nodeName":"n1"},"status":{"phase":"Running","podIP":"10.0.0.2"}}`
	case "nodes":
	default:
		http.NotFound(w, r)
		return
	}
	if r.URL.Query().Get("watch") == "" {
		_, _ = fmt.Fprintf(w, `{"kind":"%sList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[%s]}`, kind, items)
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		if items != "" {
			_, _ = fmt.Fprintf(w, `{"type":"ADDED","object":%s}`, items)
		}
		_, _ = fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":%q,"apiVersion":"v1","metadata":{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}}`, kind)
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}
