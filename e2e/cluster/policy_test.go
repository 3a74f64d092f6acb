package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// peerAuthentication is the manifest of one.
func peerAuthentication(name, spec string) string {
	return fmt.Sprintf(`{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": %q}, "spec": %s}`, name, spec)
}

// authorization is the manifest of an AuthorizationPolicy.
func authorization(name, annotations, spec string) string {
	return fmt.Sprintf(`{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": %q, "annotations": {%s}}, "spec": %s}`, name, annotations, spec)
}

// remove takes an object of the namespace away.
func (s *space) remove(resource, name string) {
	s.t.Helper()
	if _, err := kubectl(s.t.Context(), nil, "delete", "--wait=false", "-n", s.name, resource, name); err != nil {
		s.t.Fatal(err)
	}
}

// wantCondition waits for what the controller says of a policy.
func (s *space) wantCondition(resource, name, status, reason, text string) {
	s.t.Helper()
	wait(s.t, resource+" "+name+" says "+status+" "+reason, func() error {
		out, err := kubectl(s.t.Context(), nil, "get", "-n", s.name, resource, name, "-o", "json")
		if err != nil {
			return err
		}
		var o struct {
			Metadata metav1.ObjectMeta
			Status   struct {
				Conditions []struct {
					Type, Status, Reason, Message string
					ObservedGeneration            any
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			return err
		}
		for _, c := range o.Status.Conditions {
			if c.Type == "ZtunnelAccepted" && c.Status == status && c.Reason == reason && strings.Contains(c.Message, text) &&
				fmt.Sprint(c.ObservedGeneration) == fmt.Sprint(o.Metadata.Generation) {
				return nil
			}
		}
		return fmt.Errorf("generation %d, conditions %v", o.Metadata.Generation, o.Status.Conditions)
	})
}

// reset wants the client's connections to be refused by a reset, not by silence.
func (a *app) reset(url string) {
	a.t.Helper()
	a.refused(url)
	r, err := a.get1(url)
	if err != nil {
		a.t.Fatal(err)
	}
	if !strings.Contains(r.Error, "connection reset by peer") {
		a.t.Errorf("%s is refused at %s with %d %q, want a reset", a.name, url, r.Status, r.Error)
	}
}

// cut waits until the client has lost all of its connections and returns how long that took.
func (s *session) cut(begin time.Time) time.Duration {
	s.t.Helper()
	var took time.Duration
	s.once.Do(func() {
		defer s.cancel()
		timer := time.AfterFunc(patience, s.cancel)
		defer timer.Stop()
		var h held
		for s.out.Scan() {
			if err := json.Unmarshal(s.out.Bytes(), &h); err != nil {
				s.t.Fatalf("%s printed %q: %v", s.name, s.out.Text(), err)
			}
		}
		took = time.Since(begin)
		_ = s.stdin.Close()
		if err := s.cmd.Wait(); err != nil {
			s.t.Fatalf("%s: %v: %s", s.name, err, s.diag)
		}
		if len(h.Errors) != h.Conns || h.Rounds < int64(h.Conns) {
			s.t.Fatalf("%s: %d rounds on %d connections, broken: %v", s.name, h.Rounds, h.Conns, h.Errors)
		}
		for _, text := range h.Errors {
			if !strings.Contains(text, "connection reset by peer") && !strings.Contains(text, "broken pipe") {
				s.t.Errorf("%s ended with %q, want a reset", s.name, text)
			}
		}
	})
	return took
}

// STRICT, of the mesh or of a namespace, refuses plaintext and ends that which is there; tunnels and probes go on. The
// namespace's own word counts more than the mesh's.
func TestStrict(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	server := ns.pod("server", onNode(n2), probes(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: portNumber(8080)}}))
	client := ns.pod("client", onNode(n1))
	stranger := outsider(t, n1)
	server.ready().enrolled()
	client.ready().enrolled()
	url := "http://" + server.ip + ":8080/"
	stranger.reach(url)
	plain, tunnelled := stranger.hold(3, server.ip+":9000"), client.hold(3, server.ip+":9000")

	begin := time.Now()
	ns.apply(peerAuthentication("default", `{"mtls": {"mode": "STRICT"}}`))
	t.Logf("plaintext connections were ended %v after STRICT", plain.cut(begin).Round(time.Millisecond))
	stranger.reset(url)
	client.mustGet(url)

	root := &space{t: t, name: system}
	root.apply(peerAuthentication("e2e", `{"mtls": {"mode": "STRICT"}}`))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := kubectl(ctx, nil, "delete", "-n", system, "peerauthentication", "e2e", "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	ns.apply(peerAuthentication("default", `{"mtls": {"mode": "PERMISSIVE"}}`))
	stranger.reach(url)
	plain = stranger.hold(1, server.ip+":9000")
	begin = time.Now()
	ns.apply(peerAuthentication("default", `{"mtls": {"mode": "UNSET"}}`)) // as the mesh says
	t.Logf("by the mesh's mode: after %v", plain.cut(begin).Round(time.Millisecond))
	stranger.reset(url)
	wantTLS(t, client, server)

	consistently(t, "the probed pod", 3*time.Second, func() error {
		p, err := server.get()
		if err == nil && !ready(p) {
			err = fmt.Errorf("it is not ready: %s", server.events())
		}
		return err
	})
	if n := server.restarts(); n > 0 {
		t.Errorf("the server was started %d times again: %s", n, server.events())
	}
	t.Logf("tunnelled: %+v", tunnelled.unbroken())
	root.remove("peerauthentication", "e2e")
	stranger.reach(url)
}

// DISABLE on a port opens it for plaintext, and the tunnel leads there too; DISABLE on a workload makes its peers speak
// plaintext.
func TestPortLevelDisable(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	server, client := ns.pod("server", onNode(n2), withArgs("serve", "--http=:8080,:8081")), ns.pod("client", onNode(n1))
	stranger := outsider(t, n1)
	server.ready().enrolled()
	client.ready().enrolled()
	url := func(port int) string { return fmt.Sprintf("http://%s:%d/", server.ip, port) }
	const selector = `"selector": {"matchLabels": {"app": "server"}}`
	wantTunnel := func(port int) {
		t.Helper()
		begin := since()
		client.reach(url(port))
		m.wantRecord(t, n2, begin, map[string]string{
			"direction": "inbound", "dst.hbone_addr": fmt.Sprintf("%s:%d", server.ip, port), "src.workload": "client", "src.identity": client.identity(),
		})
	}

	ns.apply(peerAuthentication("server", `{`+selector+`, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8081": {"mode": "DISABLE"}}}`))
	stranger.reset(url(8080))
	stranger.reach(url(8081))
	wantTunnel(8080)
	wantTunnel(8081)

	ns.apply(peerAuthentication("server", `{`+selector+`, "mtls": {"mode": "DISABLE"}, "portLevelMtls": {"8081": {"mode": "STRICT"}}}`))
	stranger.reach(url(8080))
	stranger.reset(url(8081))
	wantTunnel(8081) // a strict port keeps the tunnel

	ns.apply(peerAuthentication("server", `{`+selector+`, "mtls": {"mode": "DISABLE"}, "portLevelMtls": {"8081": {"mode": "UNSET"}}}`))
	stranger.reach(url(8081))
	begin := since()
	wait(t, "the client speaks plaintext", func() error {
		if _, err := client.get1(url(8080)); err != nil {
			return err
		}
		records, err := m.accessLog(t.Context(), n2, begin)
		if err != nil {
			return err
		}
		for _, r := range records {
			if r.str("src.workload") == "client" && r.str("src.identity") == "" {
				return nil
			}
		}
		return fmt.Errorf("none among %v", records)
	})

	// Of two of one age, which is told in whole seconds, the name decides.
	ns.apply(peerAuthentication("younger", `{`+selector+`, "mtls": {"mode": "STRICT"}}`))
	ns.wantCondition("peerauthentication", "younger", "False", "Overruled", ns.name+"/server selects the same workloads")
	stranger.mustGet(url(8080))
}

// scene are the pods that TestAuthorizationL4 tries: two clients beside the server, one of another namespace and one outside
// of the mesh.
type scene struct {
	*space
	server  *app
	clients map[string]*app
}

// try says whether a client gets an answer; who is "alpha:8080".
func (s *scene) try(who string) (bool, string) {
	name, port, _ := strings.Cut(who, ":")
	r, err := s.clients[name].get1("http://" + s.server.ip + ":" + port + "/")
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status == http.StatusOK, fmt.Sprintf("status %d %s", r.Status, r.Error)
}

// want waits until exactly these reach what they name, of all.
func (s *scene) want(allowed string) {
	s.t.Helper()
	set := make(map[string]bool)
	for _, who := range strings.Fields(allowed) {
		set[who] = true
	}
	wait(s.t, "exactly "+allowed+" is allowed", func() error {
		for _, who := range []string{"alpha:8080", "alpha:8081", "beta:8080", "gamma:8080", "plain:8080"} {
			if ok, text := s.try(who); ok != set[who] {
				return fmt.Errorf("%s: %s", who, text)
			}
		}
		return nil
	})
}

// What AuthorizationPolicies say is what connections meet, and what their statuses say.
func TestAuthorizationL4(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns, other := namespace(t, modeLabel+"=ambient"), namespace(t, modeLabel+"=ambient")
	s := &scene{space: ns, server: ns.pod("server", onNode(n2), withArgs("serve", "--http=:8080,:8081")), clients: map[string]*app{
		"alpha": ns.pod("alpha", onNode(n1)), "beta": ns.pod("beta", onNode(n2)), "gamma": other.pod("gamma", onNode(n1)), "plain": outsider(t, n1),
	}}
	s.server.ready().enrolled()
	for _, name := range []string{"alpha", "beta", "gamma"} {
		s.clients[name].ready().enrolled()
	}
	const all = "alpha:8080 alpha:8081 beta:8080 gamma:8080 plain:8080"
	s.want(all)
	alpha := "cluster.local/ns/" + ns.name + "/sa/alpha"
	from := func(action, source string) string {
		return fmt.Sprintf(`{"action": %q, "rules": [{"from": [{"source": {%s}}]}]}`, action, source)
	}
	to := func(action, operation string) string {
		return fmt.Sprintf(`{"action": %q, "selector": {"matchLabels": {"app": "server"}}, "rules": [{"to": [{"operation": {%s}}]}]}`, action, operation)
	}
	const accepted, unsupported = "Accepted", "UnsupportedValue"
	for _, tt := range []struct {
		name, spec, annotations string
		allowed                 string
		status, reason, text    string
	}{
		{"principals", from("ALLOW", `"principals": ["`+alpha+`"]`), "", "alpha:8080 alpha:8081", "True", accepted, "attached"},
		{"not-principals", from("ALLOW", `"notPrincipals": ["`+alpha+`"]`), "", "beta:8080 gamma:8080 plain:8080", "True", accepted, ""},
		{"namespaces", from("ALLOW", `"namespaces": ["`+ns.name+`"]`), "", "alpha:8080 alpha:8081 beta:8080", "True", accepted, ""},
		{"not-namespaces", from("DENY", `"notNamespaces": ["`+other.name+`"]`), "", "gamma:8080", "True", accepted, ""},
		{"service-accounts", from("ALLOW", `"serviceAccounts": ["beta"]`), "", "beta:8080", "True", accepted, ""},
		{"ip-blocks", from("ALLOW", `"ipBlocks": ["`+s.clients["gamma"].ip+`"]`), "", "gamma:8080", "True", accepted, ""},
		{"ports", to("ALLOW", `"ports": ["8081"]`), "", "alpha:8081", "True", accepted, ""},
		{"not-ports", to("DENY", `"notPorts": ["8080"]`), "", "alpha:8080 beta:8080 gamma:8080 plain:8080", "True", accepted, ""},
		{"custom", `{"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]}`, "", "alpha:8081", "False", unsupported, "needs a waypoint"},
		{"l7", from("ALLOW", `"requestPrincipals": ["*"]`), "", "", "True", unsupported, "found: requestPrincipals"},
		{"audit", `{"action": "AUDIT", "rules": [{}]}`, "", all, "True", accepted, "agents log"},
		{"invalid", to("ALLOW", `"ports": ["http"]`), "", "", "False", "Invalid", `"http" is no port`},
		{"invalid-dry-run", to("ALLOW", `"ports": ["http"]`), `"istio.io/dry-run": "true"`, all, "False", "Invalid", "decides nothing"},
		{"empty-list", `{"rules": [{"from": []}]}`, "", "", "True", unsupported, "rule 0: from"},
		{"dry-run", `{"action": "DENY", "rules": [{}]}`, `"istio.io/dry-run": "true"`, all, "True", accepted, "nothing is enforced"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := *s
			sub.space = &space{t: t, name: ns.name}
			ns.apply(authorization("p", tt.annotations, tt.spec))
			begin := since()
			sub.want(tt.allowed)
			sub.wantCondition("authorizationpolicy", "p", tt.status, tt.reason, tt.text)
			switch tt.name {
			case "audit":
				m.wantRecord(t, n2, begin, map[string]string{"direction": "inbound", "src.workload": "alpha", "policy.audit": ns.name + "/p"})
			case "dry-run":
				m.wantRecord(t, n2, begin, map[string]string{"direction": "inbound", "src.workload": "alpha", "policy.dry_run": "deny " + ns.name + "/p"})
			case "principals":
				m.wantRecord(t, n2, begin, map[string]string{
					"src.workload": "beta", "error": "connection closed due to policy rejection: allow policies exist, but none allowed",
				})
			}
		})
	}
	t.Run("deny-before-allow", func(t *testing.T) {
		begin := since()
		ns.apply(authorization("p", "", `{"rules": [{}]}`) + "\n---\n" + authorization("q", "", from("DENY", `"principals": ["`+alpha+`"]`)))
		s.want("beta:8080 gamma:8080 plain:8080")
		m.wantRecord(t, n2, begin, map[string]string{
			"src.workload": "alpha", "error": "connection closed due to policy rejection: explicitly denied by: " + ns.name + "/q",
		})
	})
}

// A change of policy, of labels or of what is revoked ends the connections that it concerns, soon, and no others.
func TestLiveRevocation(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	server := ns.pod("server", onNode(n2))
	client, bystander := ns.pod("client", onNode(n1)), ns.pod("bystander", onNode(n1))
	for _, a := range []*app{server, client, bystander} {
		a.ready().enrolled()
	}
	echo := server.ip + ":9000"
	other := bystander.hold(4, echo)
	deny := func(selector string) string {
		return authorization("p", "", fmt.Sprintf(`{"action": "DENY", %s "rules": [{"from": [{"source": {"serviceAccounts": ["client"]}}]}]}`, selector))
	}
	soon := func(what string, took time.Duration) {
		t.Helper()
		t.Logf("%s: ended after %v", what, took.Round(time.Millisecond))
		if took > 5*time.Second { // with the way from kubectl to the agent, on a busy machine
			t.Errorf("%s: it took %v", what, took)
		}
	}

	mine := client.hold(4, echo)
	begin := time.Now()
	ns.apply(deny(""))
	soon("policy", mine.cut(begin))

	ns.apply(deny(`"selector": {"matchLabels": {"locked": "yes"}},`))
	wait(t, "the policy is for others", func() error { return client.talk(echo, "hello") })
	mine = client.hold(4, echo)
	begin = time.Now()
	patch := `{"metadata": {"labels": {"locked": "yes"}}}`
	if _, err := shared.client.CoreV1().Pods(ns.name).Patch(t.Context(), server.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	soon("label", mine.cut(begin))

	ns.remove("authorizationpolicy", "p")
	wait(t, "there is no policy", func() error { return client.talk(echo, "hello") })
	mine = client.hold(4, echo)
	begin = time.Now()
	m.revoke(t, m.serial(t, client))
	took := mine.cut(begin)
	t.Logf("certificate: ended after %v, most of which the list needs to reach the agent", took.Round(time.Millisecond))
	t.Logf("the other client: %+v", other.unbroken())
}

// revoke revokes a certificate until the test ends.
func (m *installation) revoke(t *testing.T, serial string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	set := func(value string) error {
		patch := fmt.Sprintf(`{"stringData": {"revoked-serials": %q}}`, value)
		_, err := kubectl(ctx, nil, "patch", "secret", "-n", system, "culvert-ca", "--type=merge", "-p", patch)
		return err
	}
	before := m.revoked(t)
	if err := set(serial + "\n"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set(""); err != nil {
			t.Error(err)
		}
	})
	wait(t, "a revocation list is published", func() error {
		if m.revoked(t) == before {
			return errors.New("it is the one of before")
		}
		return nil
	})
	m.deliver(t)
}

// serial is the number of the certificate that the agent has for the pod's identity, in hexadecimal.
func (m *installation) serial(t *testing.T, a *app) string {
	t.Helper()
	var dump struct {
		Certificates []struct {
			Identity  string
			CertChain []struct{ SerialNumber string }
		}
	}
	m.dump(t, a.node, &dump)
	for _, c := range dump.Certificates {
		if c.Identity != a.identity() || len(c.CertChain) == 0 {
			continue
		}
		if n, ok := new(big.Int).SetString(c.CertChain[0].SerialNumber, 10); ok {
			return n.Text(16)
		}
	}
	t.Fatalf("the agent of %s has no certificate for %s among %d", a.node, a.identity(), len(dump.Certificates))
	return ""
}

// dump decodes what the agent of a node tells of itself.
func (m *installation) dump(t *testing.T, node string, into any) {
	t.Helper()
	agent, err := m.agent(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	cmd := kubectlCommand(t.Context(), "port-forward", "-n", system, agent.Name, ":15000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	var port int
	if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d ->", &port); err != nil {
		t.Fatalf("port-forward printed %q", line)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/config_dump", port), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatal(err)
	}
}
