package cluster

import (
	"fmt"
	"strings"
	"testing"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// What the network between the nodes carries: readable payload with the mesh off, TLS to port 15008 with it on.
func TestCrossNodeMTLS(t *testing.T) {
	mesh(t)
	needNodes(t)
	ns := namespace(t)
	client, server := ns.run("client", onNode("node1")), ns.run("server", onNode("node2"))
	const off, on = "culvert-e2e-payload-in-the-open", "culvert-e2e-payload-in-the-tunnel"
	wire := tap(t, off, on)

	for _, addr := range server.addresses(t) {
		if err := client.talk(addr+":9000", off); err != nil {
			t.Fatal(err)
		}
	}
	ns.enrol()
	client.enrolled()
	server.enrolled()
	for _, addr := range server.addresses(t) {
		if err := client.talk(addr+":9000", on); err != nil {
			t.Fatal(err)
		}
	}
	wantTLS(t, client, server)

	report, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if flows := report.With(0); len(flows) < 2 {
		t.Errorf("the payload in the open was seen in %d flows, not in one for each address family: the tap proves nothing\n%s", len(flows), report)
	}
	if flows := report.With(1); len(flows) > 0 || report.Found[1] {
		t.Errorf("the payload in the tunnel was readable on the wire in %v", flows)
	}
	tunnels := 0
	for _, f := range report.Flows {
		if f.Server.Port() != 15008 {
			continue
		}
		tunnels++
		if !f.Encrypted() {
			t.Errorf("not TLS: %s", f)
		}
	}
	if tunnels == 0 {
		t.Errorf("no connection to port 15008 on the wire\n%s", report)
	}
}

// addresses are the pod's addresses of both families, as a client writes them.
func (a *app) addresses(t *testing.T) []string {
	t.Helper()
	p, err := a.get()
	if err != nil {
		t.Fatal(err)
	}
	var addrs []string
	for _, ip := range p.Status.PodIPs {
		if strings.Contains(ip.IP, ":") {
			addrs = append(addrs, "["+ip.IP+"]")
		} else {
			addrs = append(addrs, ip.IP)
		}
	}
	return addrs
}

// Pods of one node are in the mesh like those of two: both identities, policy, both address families.
func TestSameNode(t *testing.T) {
	mesh(t)
	n1, _ := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n1)).enrolled()
	ns.service("server", nil)
	ns.strict()
	wantTLS(t, client, server)
	for _, addr := range server.addresses(t) {
		if err := client.talk(addr+":9000", "within one node"); err != nil {
			t.Error(err)
		}
	}
	client.reach("http://server/")
	// A pod that talks to its own service comes back to itself. (The short name is its own host name.)
	own := "http://server." + ns.name + ".svc.cluster.local/"
	server.reach(own)
	stranger := outsider(t, n1)
	stranger.refused("http://" + server.ip + ":8080/")

	ns.apply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/%s/sa/client"]}}]}]
`, ns.name))
	client.refused("http://" + server.ip + ":8080/")
	server.reach(own)
}
