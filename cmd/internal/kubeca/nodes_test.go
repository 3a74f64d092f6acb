package kubeca_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/server"
)

// pods is a cache of pods.
type pods struct {
	mu  sync.Mutex
	all []kubeca.Pod
}

func (p *pods) set(all ...kubeca.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = all
}

// Pod implements kubeca.Pods.
func (p *pods) Pod(namespace, name string) (kubeca.Pod, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range p.all {
		if pod.Namespace == namespace && pod.Name == name {
			return pod, true
		}
	}
	return kubeca.Pod{}, false
}

// PodsOnNode implements kubeca.Pods.
func (p *pods) PodsOnNode(node string) []kubeca.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []kubeca.Pod
	for _, pod := range p.all {
		if pod.Node == node {
			found = append(found, pod)
		}
	}
	return found
}

func agentPod(name, uid, node string) kubeca.Pod {
	return kubeca.Pod{UID: uid, Namespace: namespace, Name: name, ServiceAccount: "culvert-node", Node: node, HostNetwork: true}
}

func appPod(name, account, node string) kubeca.Pod {
	return kubeca.Pod{UID: "uid-" + name, Namespace: "default", Name: name, ServiceAccount: account, Node: node}
}

var caller = server.Caller{Namespace: namespace, ServiceAccount: "culvert-node", PodName: "agent", PodUID: "uid-agent"}

func newAuthorizer(t testing.TB, p kubeca.Pods, patience time.Duration) *kubeca.NodeAuthorizer {
	t.Helper()
	a, err := kubeca.NewNodeAuthorizer(kubeca.NodeAuthorizerConfig{
		Pods: p, TrustDomain: td, Trusted: []kubeca.Account{{Namespace: namespace, Name: "culvert-node"}}, Patience: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthorize(t *testing.T) {
	changed := func(pod kubeca.Pod, change func(*kubeca.Pod)) kubeca.Pod {
		change(&pod)
		return pod
	}
	agent, app := agentPod("agent", "uid-agent", "a"), appPod("web-1", "web", "a")
	tests := []struct {
		name   string
		caller func(*server.Caller)
		id     string
		pods   []kubeca.Pod
		err    string // empty: allowed
	}{
		{"allowed", nil, "", []kubeca.Pod{agent, app}, ""},
		{"allowed_by_node_of_token", func(c *server.Caller) { c.Node = "a" }, "", []kubeca.Pod{agent, app}, ""},
		{"one_live_pod_is_enough", nil, "", []kubeca.Pod{agent, changed(app, func(p *kubeca.Pod) { p.Terminal = true }), appPod("web-2", "web", "a")}, ""},
		{"not_an_agent", func(c *server.Caller) { c.ServiceAccount = "web" }, "", []kubeca.Pod{agent, app}, "culvert-system/web is not the account of a node agent"},
		{"agent_of_another_namespace", func(c *server.Caller) { c.Namespace = "default" }, "", []kubeca.Pod{agent, app}, "default/culvert-node is not the account of a node agent"},
		{"not_bound", func(c *server.Caller) { c.PodUID = "" }, "", []kubeca.Pod{agent, app}, "is not bound to a pod"},
		{"trust_domain", nil, "spiffe://other/ns/default/sa/web", []kubeca.Pod{agent, app}, "spiffe://other/ns/default/sa/web is not of trust domain td"},
		{"agent_unknown", nil, "", []kubeca.Pod{app}, "pod culvert-system/agent is not known"},
		{"agent_re-created", nil, "", []kubeca.Pod{agentPod("agent", "uid-new", "a"), app}, "pod culvert-system/agent has UID uid-new, the token is for uid-agent"},
		{"agent_with_other_account", nil, "", []kubeca.Pod{changed(agent, func(p *kubeca.Pod) { p.ServiceAccount = "default" }), app}, "has service account default, the token is for culvert-node"},
		{"agent_ended", nil, "", []kubeca.Pod{changed(agent, func(p *kubeca.Pod) { p.Terminal = true }), app}, "pod culvert-system/agent has ended"},
		{"agent_not_scheduled", nil, "", []kubeca.Pod{agentPod("agent", "uid-agent", ""), appPod("web-1", "web", "")}, "pod culvert-system/agent is on no node"},
		{"agent_lies_about_its_node", func(c *server.Caller) { c.Node = "b" }, "", []kubeca.Pod{agent, app}, "pod culvert-system/agent is on node a, the token is for b"},
		{"pod_on_another_node", nil, "", []kubeca.Pod{agent, appPod("web-1", "web", "b")}, "no pod of default/web is on node a"},
		{"pod_not_scheduled", nil, "", []kubeca.Pod{agent, appPod("web-1", "web", "")}, "no pod of default/web is on node a"},
		{"pod_ended", nil, "", []kubeca.Pod{agent, changed(app, func(p *kubeca.Pod) { p.Terminal = true })}, "no pod of default/web is on node a"},
		{"pod_with_network_of_the_host", nil, "", []kubeca.Pod{agent, changed(app, func(p *kubeca.Pod) { p.HostNetwork = true })}, "no pod of default/web is on node a"},
		{"same_name_other_account", nil, "", []kubeca.Pod{agent, appPod("web", "default", "a")}, "no pod of default/web is on node a"},
		{"account_in_another_namespace", nil, "spiffe://td/ns/prod/sa/web", []kubeca.Pod{agent, app}, "no pod of prod/web is on node a"},
		{"the_agents_own", nil, "spiffe://td/ns/culvert-system/sa/culvert-node", []kubeca.Pod{agent, app}, "no pod of culvert-system/culvert-node is on node a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &pods{}
			p.set(tt.pods...)
			c, id := caller, web
			if tt.caller != nil {
				tt.caller(&c)
			}
			if tt.id != "" {
				id = identity.MustParse(tt.id)
			}
			err := newAuthorizer(t, p, -1).Authorize(t.Context(), c, id)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
		})
	}
}

// TestAuthorizeWaits has pods arrive in the cache after the agent has heard of
// them.
func TestAuthorizeWaits(t *testing.T) {
	agent, app := agentPod("agent", "uid-agent", "a"), appPod("web-1", "web", "a")
	for name, first := range map[string][]kubeca.Pod{
		"pod":                {agent},
		"pod_to_be_placed":   {agent, appPod("web-1", "web", "")},
		"agent":              {app},
		"agent_of_yesterday": {agentPod("agent", "uid-old", "a"), app},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pods{}
				p.set(first...)
				time.AfterFunc(time.Second, func() { p.set(agent, app) })
				begun := time.Now()
				if err := newAuthorizer(t, p, 0).Authorize(t.Context(), caller, web); err != nil {
					t.Error(err)
				}
				if took := time.Since(begun); took < time.Second || took > 1100*time.Millisecond {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

func TestAuthorizeLosesPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pods{}
		a := newAuthorizer(t, p, 0)
		begun := time.Now()
		if _, err := a.Agent(t.Context(), caller); err == nil || time.Since(begun) != 2*time.Second {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		if err := a.Authorize(ctx, caller, web); err == nil || time.Since(begun) != time.Second {
			t.Errorf("the caller left after %s: %v", time.Since(begun), err)
		}
		p.set(agentPod("agent", "uid-agent", "a"))
		if pod, err := a.Agent(t.Context(), caller); err != nil || pod.Node != "a" {
			t.Errorf("agent: %+v, %v", pod, err)
		}
		ended := agentPod("agent", "uid-agent", "a")
		ended.Terminal = true
		p.set(ended)
		begun = time.Now()
		if _, err := a.Agent(t.Context(), caller); err == nil || time.Since(begun) != 0 {
			t.Errorf("waited %s for what will not change: %v", time.Since(begun), err)
		}
	})
}

func TestNewNodeAuthorizerRefuses(t *testing.T) {
	for _, cfg := range []kubeca.NodeAuthorizerConfig{{}, {Pods: &pods{}, TrustDomain: td}, {Pods: &pods{}, Trusted: []kubeca.Account{{}}}} {
		if _, err := kubeca.NewNodeAuthorizer(cfg); err == nil {
			t.Errorf("%+v: accepted", cfg)
		}
	}
}

// confused says of each pod that it is on each node.
type confused struct{ *pods }

// PodsOnNode implements kubeca.Pods.
func (c confused) PodsOnNode(string) []kubeca.Pod { return c.all }

// TestAuthorizeTrustsNoIndex looks at the pods themselves.
func TestAuthorizeTrustsNoIndex(t *testing.T) {
	p := &pods{}
	p.set(agentPod("agent", "uid-agent", "a"), appPod("web-1", "web", "b"))
	if err := newAuthorizer(t, confused{p}, -1).Authorize(t.Context(), caller, web); err == nil {
		t.Error("a pod of another node counts")
	}
}
