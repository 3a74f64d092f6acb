package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// enforcerTable is the enforcer's on each node.
const enforcerTable = "bridge e2e_netpol"

// enforcer is what a CNI that enforces does for one namespace: it follows its NetworkPolicies and pods and writes rules
// for the bridges that the pods are plugged into. It knows selectors of pods and numbers of TCP ports.
type enforcer struct {
	*space
	nodes   []corev1.Node
	written map[string]string // by node
}

// enforce starts an enforcer that ends with the test, and waits until it has written what there is.
func (s *space) enforce() {
	s.t.Helper()
	list, err := shared.client.CoreV1().Nodes().List(s.t.Context(), metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	e := &enforcer{space: s, nodes: list.Items, written: make(map[string]string)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	var running sync.WaitGroup
	s.t.Cleanup(func() {
		cancel()
		running.Wait()
		for _, n := range e.nodes {
			script := "table " + enforcerTable + "\ndelete table " + enforcerTable + "\n" // also when there is none
			if err := e.nft(context.WithoutCancel(ctx), n.Name, script); err != nil {
				s.t.Errorf("clean %s: %v", n.Name, err)
			}
		}
	})
	if err := e.follow(ctx); err != nil {
		s.t.Fatal(err)
	}
	running.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := e.follow(ctx); err != nil && ctx.Err() == nil {
				s.t.Errorf("enforce policies: %v", err)
				return
			}
		}
	})
}

func (e *enforcer) nft(ctx context.Context, node, script string) error {
	cmd := shared.nodes.Node(node).Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft on %s: %w: %s\n%s", node, err, out, script)
	}
	return nil
}

// follow writes the rules of each node if they are not there yet.
func (e *enforcer) follow(ctx context.Context) error {
	policies, err := shared.client.NetworkingV1().NetworkPolicies(e.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := shared.client.CoreV1().Pods(e.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range e.nodes {
		script, err := rulesOf(n, policies.Items, pods.Items)
		if err != nil {
			return err
		}
		if e.written[n.Name] == script {
			continue
		}
		if err := e.nft(ctx, n.Name, script); err != nil {
			return err
		}
		e.written[n.Name] = script
	}
	return nil
}

// rulesOf translates policies for the pods of one node: what reaches them leaves the bridge, what they send enters it. Only
// the first packet of a connection is judged.
func rulesOf(node corev1.Node, policies []networkingv1.NetworkPolicy, pods []corev1.Pod) (string, error) {
	var in, out strings.Builder
	for _, block := range node.Spec.PodCIDRs { // the kubelet of the own node always gets through, from the bridge's address
		p, err := netip.ParsePrefix(block)
		if err != nil {
			return "", err
		}
		gateway := p.Masked().Addr().Next()
		fmt.Fprintf(&in, "    %s saddr %s accept\n", family(gateway), gateway)
	}
	for _, pod := range pods {
		if pod.Spec.NodeName != node.Name {
			continue
		}
		for _, ip := range pod.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return "", err
			}
			for direction, b := range map[networkingv1.PolicyType]*strings.Builder{networkingv1.PolicyTypeIngress: &in, networkingv1.PolicyTypeEgress: &out} {
				if err := rulesOfPod(b, direction, pod, addr, policies, pods); err != nil {
					return "", err
				}
			}
		}
	}
	return fmt.Sprintf(`table %[1]s
delete table %[1]s
table %[1]s {
  chain ingress {
    type filter hook postrouting priority 0; policy accept;
%[2]s  }
  chain egress {
    type filter hook prerouting priority 0; policy accept;
%[3]s  }
}
`, enforcerTable, in.String(), out.String()), nil
}

func family(addr netip.Addr) string {
	if addr.Is6() {
		return "ip6"
	}
	return "ip"
}

func rulesOfPod(b *strings.Builder, direction networkingv1.PolicyType, pod corev1.Pod, addr netip.Addr, policies []networkingv1.NetworkPolicy, pods []corev1.Pod) error {
	own, other := "daddr", "saddr"
	if direction == networkingv1.PolicyTypeEgress {
		own, other = other, own
	}
	isolated := false
	for _, p := range policies {
		chosen, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			return err
		}
		if !slices.Contains(p.Spec.PolicyTypes, direction) || !chosen.Matches(labels.Set(pod.Labels)) {
			continue
		}
		isolated = true
		for _, r := range rulesFor(&p, direction) {
			peers, ports, err := allowed(r, addr, pods)
			if err != nil {
				return fmt.Errorf("policy %s: %w", p.Name, err)
			}
			if len(peers) > 0 && len(ports) > 0 {
				f := family(addr)
				fmt.Fprintf(b, "    %s %s %s %s %s { %s } tcp dport { %s } accept\n", f, own, addr, f, other, strings.Join(peers, ", "), strings.Join(ports, ", "))
			}
		}
	}
	if isolated {
		fmt.Fprintf(b, "    %s %s %s tcp flags & (syn | ack) == syn counter drop\n", family(addr), own, addr)
	}
	return nil
}

// podRule is a rule of either direction.
type podRule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func rulesFor(p *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) (all []podRule) {
	if direction == networkingv1.PolicyTypeIngress {
		for _, r := range p.Spec.Ingress {
			all = append(all, podRule{r.From, r.Ports})
		}
		return all
	}
	for _, r := range p.Spec.Egress {
		all = append(all, podRule{r.To, r.Ports})
	}
	return all
}

// allowed are the addresses of a rule's peers, of the family of addr, and its TCP ports.
func allowed(r podRule, addr netip.Addr, pods []corev1.Pod) (peers, ports []string, err error) {
	for _, p := range r.peers {
		if p.PodSelector == nil || p.NamespaceSelector != nil {
			return nil, nil, errors.New("this enforcer knows only pods of the same namespace")
		}
		chosen, err := metav1.LabelSelectorAsSelector(p.PodSelector)
		if err != nil {
			return nil, nil, err
		}
		for _, pod := range pods {
			for _, ip := range pod.Status.PodIPs {
				a, err := netip.ParseAddr(ip.IP)
				if err == nil && a.Is6() == addr.Is6() && chosen.Matches(labels.Set(pod.Labels)) {
					peers = append(peers, a.String())
				}
			}
		}
	}
	for _, p := range r.ports {
		if p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP {
			ports = append(ports, p.Port.String())
		}
	}
	slices.Sort(peers)
	return peers, ports, nil
}

// blocked wants no answer from the URL within two seconds: an enforcing CNI says nothing.
func (a *app) blocked(url string) {
	a.t.Helper()
	wait(a.t, a.name+" does not get through to "+url, func() error {
		var all []response
		if err := a.exec(&all, "get", "--timeout=2s", url); err != nil {
			return err
		}
		if len(all) != 1 || all[0].Error == "" {
			return fmt.Errorf("it got %+v", all)
		}
		return nil
	})
}

// exits runs the user's command and wants it to exit with a status; it returns what the command printed.
func (m *installation) exits(t *testing.T, status int, args ...string) string {
	t.Helper()
	out, err := m.culvert(t.Context(), args...)
	got := 0
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		got = failed.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	if got != status {
		t.Fatalf("culvert %s exits with %d, want %d:\n%s", strings.Join(args, " "), got, status, out)
	}
	return out
}

// The policies that people write: the port of the application, from those who call it.
const beforeTheMesh = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{protocol: TCP, port: 8080}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{protocol: TCP, port: 8080}]}]
`

// A CNI that enforces the policies from before the mesh cuts it; the user's command says where and adds the port, and then
// everything works as before, and nothing more.
func TestNetpolUnderEnforcingCNI(t *testing.T) {
	m := mesh(t)
	needNodes(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t)
	role := withLabel("role", "client")
	far, near := ns.pod("far", onNode(n1), role), ns.pod("near", onNode(n2), role)
	server, stranger := ns.pod("server", onNode(n2), withArgs("serve", "--http=:8080,:8081")), ns.pod("stranger", onNode(n1))
	all := []*app{far.ready(), near.ready(), server.ready(), stranger.ready()}
	url := func(port int) string { return fmt.Sprintf("http://%s:%d/", server.ip, port) }
	far.mustGet(url(8081))
	ns.apply(beforeTheMesh)
	ns.enforce()

	begin := time.Now()
	works := func() {
		t.Helper()
		far.reach(url(8080))
		near.reach(url(8080))
		stranger.blocked(url(8080))
		far.blocked(url(8081))
	}
	works()
	if out := m.exits(t, 0, "netpol", "check", "-n", ns.name); !strings.Contains(out, "not of the mesh") {
		t.Errorf("before the namespace is labelled, check prints\n%s", out)
	}
	m.exits(t, 1, "netpol", "check", "-n", ns.name, "--assume-enrolled="+ns.name)

	ns.enrol()
	for _, a := range all {
		a.enrolled()
	}
	far.blocked(url(8080))
	near.blocked(url(8080))
	out := m.exits(t, 1, "netpol", "check", "-n", ns.name)
	for _, want := range []string{"NetworkPolicy " + ns.name + "/server: CUTS HBONE", "NetworkPolicy " + ns.name + "/clients: CUTS HBONE", "TCP 15008 is missing", "kubectl patch networkpolicy 'server'"} {
		if !strings.Contains(out, want) {
			t.Errorf("check does not print %q:\n%s", want, out)
		}
	}

	patched := since()
	out = m.exits(t, 0, "netpol", "fix", "-n", ns.name, "--apply")
	if strings.Count(out, " patched") != 2 {
		t.Errorf("fix --apply prints %s", out)
	}
	works()
	m.wantRecord(t, server.node, patched, map[string]string{"direction": "inbound", "src.identity": far.identity(), "dst.identity": server.identity()})
	m.exits(t, 0, "netpol", "check", "-n", ns.name)
	if out := m.exits(t, 0, "netpol", "fix", "-n", ns.name, "--apply"); out != "" {
		t.Errorf("a second fix prints %s", out)
	}
	t.Logf("blocked, patched and through again in %v", time.Since(begin).Round(time.Second))
}

// The controller keeps companions instead, when it is asked to; policies of users stay as they are.
func TestNetpolCompanions(t *testing.T) {
	m := mesh(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.apply(beforeTheMesh)
	m.exits(t, 1, "netpol", "check", "-n", ns.name)
	m.change(t, "netpol.companions=true", "netpol.companions=false")
	api := shared.client.NetworkingV1().NetworkPolicies(ns.name)
	companions := func(want int) {
		t.Helper()
		wait(t, fmt.Sprintf("%d companions", want), func() error {
			list, err := api.List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=culvert"})
			if err != nil {
				return err
			}
			for _, c := range list.Items {
				of, err := api.Get(t.Context(), c.OwnerReferences[0].Name, metav1.GetOptions{})
				if err != nil || of.UID != c.OwnerReferences[0].UID {
					return fmt.Errorf("%s belongs to nothing: %w", c.Name, err)
				}
				if got, want := metav1.FormatLabelSelector(&c.Spec.PodSelector), metav1.FormatLabelSelector(&of.Spec.PodSelector); got != want {
					return fmt.Errorf("%s selects %s, its policy %s", c.Name, got, want)
				}
			}
			if len(list.Items) != want {
				return fmt.Errorf("there are %d", len(list.Items))
			}
			return nil
		})
	}
	companions(2)
	if out := m.exits(t, 0, "netpol", "check", "-n", ns.name); strings.Count(out, ": companion (of ") != 2 {
		t.Errorf("check prints\n%s", out)
	}
	ns.apply(strings.ReplaceAll(beforeTheMesh, "app: server", "app: other"))
	companions(2)
	if err := api.Delete(t.Context(), "server", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	companions(1)
}
