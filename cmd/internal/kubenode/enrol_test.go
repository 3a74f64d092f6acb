package kubenode_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/workload/egress"
)

// TestLabelAndUnlabel: a running pod enters the mesh with its namespace's label, without restart, and leaves with it.
func TestLabelAndUnlabel(t *testing.T) {
	r := newRig(t)
	pod, reach := r.reachable("u1")
	r.namespace("team", nil, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	<-r.agent.Ready()
	if got := reach(); got != "application" || r.api.redirection("team/a") != "" || rules(t, pod) {
		t.Fatalf("an unlabelled pod is %s, annotated %q", got, r.api.redirection("team/a"))
	}
	r.namespace("team", ambient, nil)
	r.says("team/a", "enabled")
	if got := reach(); got != "refused" {
		t.Errorf("enrolled pod: the %s answered past the agent", got)
	}
	if got := r.host(); len(got) != 1 || got[netip.MustParseAddr("10.0.0.2")] != "u1" {
		t.Errorf("probes are let through to %v", got)
	}
	r.namespace("team", nil, nil)
	r.says("team/a", "")
	r.eventually(func() string {
		if len(r.set.Pods()) > 0 || len(r.host()) > 0 || rules(t, pod) {
			return fmt.Sprintf("left behind: %v, %v", r.set.Pods(), r.host())
		}
		return ""
	})
	if got := reach(); got != "application" {
		t.Errorf("after leaving, a connection is %s", got)
	}
	// The pod's own label beats its namespace's, both ways.
	r.api.edit("pods", "team/a", func(o object) { o["metadata"].(object)["labels"] = ambient })
	r.says("team/a", "enabled")
	r.namespace("team", ambient, nil)
	r.api.edit("pods", "team/a", func(o object) { o["metadata"].(object)["labels"] = object{"istio.io/dataplane-mode": "none"} })
	r.says("team/a", "")
}

// TestEnabledComesLast: others are told only when service, rules and certificate are all there.
func TestEnabledComesLast(t *testing.T) {
	r := newRig(t)
	pod := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.startErr, r.certErr = errNo, errNever
	r.run(nil)
	r.says("team/a", "pending")
	if rules(t, pod) {
		t.Error("rules before listeners: connections would be lost")
	}
	r.with(func() { r.startErr = nil })
	r.eventually(func() string {
		if !rules(t, pod) {
			return "no rules came"
		}
		return ""
	})
	r.eventually(func() string {
		if told := r.api.told("team/a"); !strings.Contains(told, "CulvertNoCertificate") || !strings.Contains(told, "pod has no certificate yet: still waiting") {
			return "nobody was told of the certificate"
		}
		return ""
	})
	if got := r.api.redirection("team/a"); got != "pending" {
		t.Errorf("without certificate the pod is %q", got)
	}
	r.with(func() { r.certErr = nil })
	r.says("team/a", "enabled")
	if told := r.api.told("team/a"); !strings.Contains(told, "CulvertEnrolFailed") || strings.Count(told, "CulvertEnrolFailed") != 1 {
		t.Errorf("events:\n%s\nwant one of a failure", told)
	}
}

// TestWaitsForAddress: a pod without address is found when it has one; whoever has another's address is not.
func TestWaitsForAddress(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "", nil)
	r.pod("team/liar", "u2", "10.0.0.2", nil) // its process is where another address is
	r.process("u2", "10.0.0.3")
	r.run(nil)
	<-r.agent.Ready()
	if got := r.api.redirection("team/a"); got != "" {
		t.Errorf("pod without address is %q", got)
	}
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.says("team/a", "enabled")
	r.says("team/liar", "pending")
	if told := r.api.told("team/liar"); !strings.Contains(told, "none of the pod's addresses") {
		t.Errorf("events of the other:\n%s", told)
	}
	if _, there := r.set.Pod("u2"); there {
		t.Error("a namespace without the pod's address was taken")
	}
}

// TestPodChangesAddress: with the address the namespace is checked anew.
func TestPodChangesAddress(t *testing.T) {
	r := newRig(t)
	old := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	r.says("team/a", "enabled")

	change := func(ip string) {
		r.api.edit("pods", "team/a", func(o object) { o["status"] = object{"phase": "Running", "podIP": ip} })
	}
	change("10.0.0.9") // nobody has it
	r.says("team/a", "pending")
	if st, there := r.set.Pod("u1"); !there || st.NetNS != old.ID() {
		t.Errorf("a doubt took the pod out: %v, %v", st, there)
	}
	fresh := r.process("u1", "10.0.0.9") // a new sandbox
	r.says("team/a", "enabled")
	if st, _ := r.set.Pod("u1"); st.NetNS != fresh.ID() {
		t.Errorf("enrolled in %v, want %v", st.NetNS, fresh.ID())
	}
	r.eventually(func() string {
		if got := r.host(); len(got) != 1 || got[netip.MustParseAddr("10.0.0.9")] != "u1" {
			return fmt.Sprintf("probes are let through to %v", got)
		}
		return ""
	})
	// The same namespace under another address.
	r.with(func() { r.procs["u1"] = process{fresh, netip.MustParseAddr("10.0.0.10")} })
	change("10.0.0.10")
	r.eventually(func() string {
		if got := r.host(); len(got) != 1 || got[netip.MustParseAddr("10.0.0.10")] != "u1" {
			return fmt.Sprintf("probes are let through to %v", got)
		}
		return ""
	})
	if st, _ := r.set.Pod("u1"); st.NetNS != fresh.ID() || st.State != podset.Enrolled {
		t.Errorf("the same namespace: %v", st)
	}
}

// TestAddressReuse: an address that another pod has a moment later changes nothing for either.
func TestAddressReuse(t *testing.T) {
	r := newRig(t)
	first := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	r.says("team/a", "enabled")

	second := r.process("u2", "10.0.0.2")
	r.pod("team/b", "u2", "10.0.0.2", nil) // before the first is gone
	r.says("team/b", "enabled")
	r.api.remove("pods", "team/a")
	r.eventually(func() string {
		if _, there := r.set.Pod("u1"); there {
			return "the first is there still"
		}
		return ""
	})
	st, _ := r.set.Pod("u2")
	if st.NetNS != second.ID() || st.State != podset.Enrolled || !rules(t, second) {
		t.Errorf("the second is %v in %v, want %v", st.State, st.NetNS, second.ID())
	}
	if got := r.host()[netip.MustParseAddr("10.0.0.2")]; got != "u2" {
		t.Errorf("probes are let through for %q", got)
	}
	r.eventually(func() string {
		if rules(t, first) {
			return "the first keeps its rules"
		}
		return ""
	})
	// The same name again, under another UID, as a StatefulSet does; the old one's event never came.
	third := r.process("u3", "10.0.0.4")
	r.pod("team/b", "u3", "10.0.0.4", nil)
	r.says("team/b", "enabled")
	if st, there := r.set.Pod("u2"); there {
		t.Errorf("the second is there still: %v", st)
	}
	if st, _ := r.set.Pod("u3"); st.NetNS != third.ID() {
		t.Errorf("the third is in %v", st.NetNS)
	}
}

// TestEndedPods: a pod that has ended is let go at once, and its namespace with it.
func TestEndedPods(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	r.says("team/a", "enabled")
	r.api.edit("pods", "team/a", func(o object) { o["status"] = object{"phase": "Succeeded"} })
	r.says("team/a", "")
	r.eventually(func() string {
		if pods := r.set.Pods(); len(pods) > 0 {
			return fmt.Sprint(pods)
		}
		return ""
	})
}

// TestNamespaceDeletedWhileEnrolling: what happens to one namespace is nothing to the others.
func TestNamespaceDeletedWhileEnrolling(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.process("u2", "10.0.0.3")
	r.startErr = errNo
	r.namespace("doomed", ambient, nil)
	r.namespace("team", ambient, nil)
	r.pod("doomed/a", "u1", "10.0.0.2", nil)
	r.pod("team/b", "u2", "10.0.0.3", nil)
	r.run(nil)
	r.says("doomed/a", "pending")
	r.api.remove("namespaces", "doomed")
	r.api.set(func() { delete(r.api.objects["pods"], "doomed/a") }) // patches fail before the event comes
	r.with(func() { r.startErr = nil })
	r.says("team/b", "enabled")
	r.api.set(func() {
		r.api.tellLocked("DELETED", "pods", object{"kind": "Pod", "apiVersion": "v1", "spec": object{"nodeName": "n1"}, "metadata": object{"namespace": "doomed", "name": "a", "uid": "u1"}})
	})
	r.eventually(func() string {
		if _, there := r.set.Pod("u1"); there {
			return "the pod of the deleted namespace is there still"
		}
		return ""
	})
	// A pod of a namespace that is not known yet waits for it.
	r.process("u3", "10.0.0.4")
	r.pod("later/c", "u3", "10.0.0.4", nil)
	r.namespace("later", ambient, nil)
	r.says("later/c", "enabled")
}

// TestNamespaceMadeAnew: a pod outlives its namespace, as when somebody takes the finalizers away, and the next one of that name
// does not want it in.
func TestNamespaceMadeAnew(t *testing.T) {
	r := newRig(t)
	ns := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	r.says("team/a", "enabled")
	r.api.remove("namespaces", "team")
	if got := r.api.redirection("team/a"); got != "enabled" || !rules(t, ns) {
		t.Errorf("annotated %q, captured: %t; one goes with the other", got, rules(t, ns))
	}
	r.namespace("team", nil, nil)
	r.says("team/a", "")
	r.eventually(func() string {
		if rules(t, ns) {
			return "the pod is captured still"
		}
		return ""
	})
}

// TestOptionsFollowAnnotations: carve-outs reach the rules of a running pod, and are taken back when forbidden.
func TestOptionsFollowAnnotations(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.api.put("nodes", object{"kind": "Node", "apiVersion": "v1", "metadata": object{"name": "n2"}, "spec": object{"podCIDR": "10.9.0.0/24"},
		"status": object{"addresses": []any{object{"type": "InternalIP", "address": "192.0.2.7"}, object{"type": "Hostname", "address": "n2"}}}})
	r.pod("team/a", "u1", "10.0.0.2", func(o object) {
		o["metadata"].(object)["annotations"] = object{
			"traffic.sidecar.istio.io/excludeInboundPorts": "9090", "culvert.io/allow-host-ports": "8443", "ambient.istio.io/dns-capture": "perhaps",
		}
	})
	r.run(nil)
	r.says("team/a", "enabled")
	r.eventually(func() string {
		st, _ := r.set.Pod("u1")
		o := st.Pod.Options
		if o == nil || fmt.Sprint(o.ExcludeInbound, o.HostPorts, o.HostAddresses) != "[9090] [8443] [10.9.0.0 10.9.0.1 192.0.2.7]" {
			return fmt.Sprintf("options %+v", o)
		}
		return ""
	})
	r.eventually(func() string {
		if !strings.Contains(r.api.told("team/a"), "CulvertIgnoredAnnotation: annotation ambient.istio.io/dns-capture") {
			return "events: " + r.api.told("team/a")
		}
		return ""
	})
	r.namespace("team", ambient, object{"culvert.io/allow-carve-outs": "false"})
	r.eventually(func() string {
		st, _ := r.set.Pod("u1")
		if o := st.Pod.Options; o == nil || len(o.ExcludeInbound)+len(o.HostPorts) > 0 || st.State != podset.Enrolled {
			return fmt.Sprintf("options %+v of a pod that is %s", o, st.State)
		}
		return ""
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started["u1"] != 1 {
		t.Errorf("the service was started %d times for other options", r.started["u1"])
	}
}

// TestLargeCluster: a port for hosts is open to those of a large cluster. Where they are more than the rules hold, it is closed
// to them and the pod is enrolled all the same.
func TestLargeCluster(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hosts int
		open  bool
	}{{"large", 20000, true}, {"too_large", redirect.MaxAddresses + 1, false}} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.process("u1", "10.0.0.2")
			r.namespace("team", ambient, object{"culvert.io/allow-host-ports": "8080"})
			r.pod("team/a", "u1", "10.0.0.2", nil)
			var addrs []any
			for i, addr := 0, netip.MustParseAddr("fd00::1"); i < tt.hosts; i, addr = i+1, addr.Next() {
				addrs = append(addrs, object{"type": "InternalIP", "address": addr.String()})
			}
			r.api.put("nodes", object{"kind": "Node", "apiVersion": "v1", "metadata": object{"name": "n2"}, "status": object{"addresses": addrs}})
			r.run(nil)
			r.eventually(func() string {
				st, _ := r.set.Pod("u1")
				told := strings.Contains(r.api.told("team/a"), "CulvertIgnoredAnnotation: annotation culvert.io/allow-host-ports")
				if o := st.Pod.Options; o == nil || st.State != podset.Enrolled || (len(o.HostAddresses) == tt.hosts) != tt.open || told == tt.open {
					return fmt.Sprintf("the pod is %s, %v; told: %v", st.State, st.Err, told)
				}
				return ""
			})
		})
	}
}

// TestRepairIsTold: damage to a pod's rules is repaired and told on the pod.
func TestRepairIsTold(t *testing.T) {
	r := newRig(t)
	pod := r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	r.run(nil)
	r.says("team/a", "enabled")
	c, err := redirect.New(pod, redirect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(); err != nil {
		t.Fatal(err)
	}
	r.eventually(func() string {
		if !strings.Contains(r.api.told("team/a"), "CulvertCaptureRepaired") {
			return "events: " + r.api.told("team/a")
		}
		return ""
	})
	if !rules(t, pod) {
		t.Error("the rules are not back")
	}
}

// TestOutboundPolicy: the outbound policy of a namespace is known before its pods are enrolled, and followed after.
func TestOutboundPolicy(t *testing.T) {
	r := newRig(t)
	r.process("u1", "10.0.0.2")
	r.namespace("team", ambient, object{"culvert.io/outbound-traffic-policy": "REGISTRY_ONLY"})
	r.pod("team/a", "u1", "10.0.0.2", nil)
	modes := egress.New(egress.AllowAny)
	early := make(chan egress.Mode, 1)
	r.run(func(c *kubenode.Config) {
		c.Outbound = modes
		c.Options = func() redirect.Options { // asked for at enrolment
			select {
			case early <- modes.Of("team"):
			default:
			}
			return redirect.Options{}
		}
	})
	r.says("team/a", "enabled")
	if got := <-early; got != egress.RegistryOnly {
		t.Errorf("pod was enrolled under %s", got)
	}
	follows := func(annotations object, want egress.Mode) {
		t.Helper()
		r.namespace("team", ambient, annotations)
		r.eventually(func() string {
			if got := modes.Of("team"); got != want {
				return got.String()
			}
			return ""
		})
	}
	follows(nil, egress.AllowAny)
	if modes.Of("other") != egress.AllowAny {
		t.Error("another namespace follows")
	}
	follows(object{"culvert.io/outbound-traffic-policy": "registry_only"}, egress.RegistryOnly) // in doubt
	r.eventually(func() string {
		if told := r.api.told("team/a"); !strings.Contains(told, `CulvertIgnoredAnnotation: annotation culvert.io/outbound-traffic-policy of the namespace: outbound traffic policy "registry_only"`) {
			return "events: " + told
		}
		return ""
	})
	follows(object{"culvert.io/outbound-traffic-policy": "ALLOW_ANY"}, egress.AllowAny)
}

// levels counts the log's lines about pods that are not as they should be.
type levels struct {
	slog.Handler
	mu   sync.Mutex
	seen []slog.Level
}

func (l *levels) Enabled(context.Context, slog.Level) bool { return true }

func (l *levels) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Message == "pod is not as it should be" {
		l.seen = append(l.seen, r.Level)
	}
	return nil
}

// TestNoProcessYet: that a pod has none for a moment is no warning; that it has none for long is one.
func TestNoProcessYet(t *testing.T) {
	r := newRig(t)
	r.namespace("team", ambient, nil)
	r.pod("team/a", "u1", "10.0.0.2", nil)
	log := &levels{Handler: slog.DiscardHandler}
	r.run(func(c *kubenode.Config) { c.Logger = slog.New(log) })
	r.eventually(func() string {
		log.mu.Lock()
		defer log.mu.Unlock()
		if !slices.Contains(log.seen, slog.LevelWarn) {
			return "no warning came"
		}
		return ""
	})
	log.mu.Lock()
	defer log.mu.Unlock()
	if len(log.seen) < 3 || log.seen[0] != slog.LevelDebug || log.seen[1] != slog.LevelDebug {
		t.Errorf("levels %v", log.seen)
	}
}
