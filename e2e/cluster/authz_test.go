package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// The commands about policy agree with what happens: who may reach a workload, which rule decides, and policies made of real
// connections, which let those connections pass and no others.
func TestAuthzCommands(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	client, snoop, server := ns.pod("web", onNode(n1)), ns.pod("snoop", onNode(n1)), ns.pod("cart", onNode(n2))
	ns.service("cart", nil)
	for _, a := range []*app{client, snoop, server} {
		a.ready().enrolled()
	}
	client.reach("http://cart/")
	ask := func(args ...string) (string, int) {
		t.Helper()
		return m.authz(t, append(args, "-n", ns.name)...)
	}
	if out, status := ask("check", "pod/cart"); status != 0 || !strings.Contains(out, "reached by everyone") {
		t.Errorf("before there are policies, status %d:\n%s", status, out)
	}
	if out, status := ask("check", "--from=pod/snoop", "--to=service/cart", "--port=80"); status != 0 || !strings.HasPrefix(out, "ALLOWED") {
		t.Errorf("before there are policies, status %d:\n%s", status, out)
	}

	principal := fmt.Sprintf("cluster.local/ns/%s/sa/web", ns.name)
	var manifests string
	wait(t, "agents tell of the connection", func() error {
		out, status := ask("suggest", "--only-namespace="+ns.name)
		if status != 0 || !strings.Contains(out, principal) || !strings.Contains(out, `"8080"`) {
			return fmt.Errorf("status %d:\n%s", status, out)
		}
		manifests = out
		return nil
	})
	ns.apply(manifests)
	client.reach("http://cart/")
	snoop.refused("http://cart/")
	client.mustGet("http://" + server.ip + ":8080/")
	if r, err := client.get1("http://" + server.ip + ":9000/"); err == nil && r.Status == 200 {
		t.Error("a port that nobody came to is open")
	}

	out, status := ask("check", "--from=pod/snoop", "--to=service/cart", "--port=80")
	if status != 1 || !strings.HasPrefix(out, "DENIED") || !strings.Contains(out, "allow-seen-cart") {
		t.Errorf("for who is refused, status %d:\n%s", status, out)
	}
	var verdicts []struct {
		Allowed bool
		Policy  string
		Rule    int
	}
	out, status = ask("check", "--from=pod/web", "--to=pod/cart", "--port=8080", "-o", "json")
	if err := json.Unmarshal([]byte(out), &verdicts); err != nil || status != 0 || len(verdicts) != 1 {
		t.Fatalf("for who is allowed, status %d, %v:\n%s", status, err, out)
	}
	if v := verdicts[0]; !v.Allowed || v.Rule != 0 || v.Policy != "AuthorizationPolicy "+ns.name+"/allow-seen-cart" {
		t.Errorf("who is allowed: %+v", v)
	}
	m.wantSoundPolicies(t, ns)
}

// wantSoundPolicies wants nothing worse than notes about the namespace's policies.
func (m *installation) wantSoundPolicies(t *testing.T, ns *space) {
	t.Helper()
	var found []struct{ Severity, Namespace, Text string }
	out, _ := m.authz(t, "lint", "-o", "json")
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, f := range found {
		if f.Namespace == ns.name && f.Severity != "note" {
			t.Errorf("lint of what was suggested: %s: %s", f.Severity, f.Text)
		}
	}
}

// authz runs `culvert authz` and returns what it prints and its exit status.
func (m *installation) authz(t *testing.T, args ...string) (string, int) {
	t.Helper()
	out, err := m.culvert(t.Context(), append([]string{"authz"}, args...)...)
	if exit, failed := errors.AsType[*exec.ExitError](err); failed {
		return out, exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out, 0
}
