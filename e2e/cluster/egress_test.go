package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const outboundAnnotation = "culvert.io/outbound-traffic-policy"

// outbound sets the outbound traffic policy of the namespace; empty is the mesh's.
func (s *space) outbound(policy string) {
	s.t.Helper()
	text := `"` + policy + `"`
	if policy == "" {
		text = "null"
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, outboundAnnotation, text)
	if _, err := shared.client.CoreV1().Namespaces().Patch(s.t.Context(), s.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// resolve returns the addresses of a name, as the pod sees them.
func (a *app) resolve(name string) ([]netip.Addr, error) {
	var result struct {
		Addresses []netip.Addr `json:"addresses"`
		Error     string       `json:"error"`
	}
	if err := a.exec(&result, "resolve", name); err != nil {
		return nil, err
	}
	if result.Error != "" {
		return nil, fmt.Errorf("resolve %s: %s", name, result.Error)
	}
	return result.Addresses, nil
}

// A namespace that asks for it lets nobody out but to what is registered; others go on, and so does it when it asks no
// more. No pod and no agent is started again for that.
func TestRegistryOnly(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	// A server that the mesh knows by no address: on the network of a node.
	far := namespace(t)
	server := far.run("outside", onNode(n2), onHostNetwork, withArgs("serve", "--http=:18080", "--echo=:19000"))
	far.service("outside", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone })
	closed, open := namespace(t, modeLabel+"=ambient"), namespace(t, modeLabel+"=ambient")
	client, free := closed.run("client", onNode(n1)).enrolled(), open.run("free", onNode(n1)).enrolled()
	member := closed.run("member", onNode(n2)).enrolled()
	closed.service("member", nil)
	direct, echo := fmt.Sprintf("http://%s:18080/", server.ip), server.ip+":19000"

	client.reach(direct)
	live, kept := client.hold(1, echo), client.hold(1, member.ip+":9000")
	begin := since()
	closed.outbound("REGISTRY_ONLY")
	t.Run("live", func(t *testing.T) {
		shared.mesh.wantRecord(t, n1, begin, map[string]string{
			"direction": "outbound", "src.namespace": closed.name, "dst.addr": echo,
			"error": "connection closed due to outbound traffic policy REGISTRY_ONLY: destination is not in the registry",
		})
		var h held
		if live.stop(&h); len(h.Errors) != 1 {
			t.Errorf("the connection to an unknown server went on: %+v", h)
		}
	})
	t.Run("refused", func(t *testing.T) {
		begin := time.Now()
		client.refused(direct)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the refusal took %v", took)
		}
		shared.mesh.wantRecord(t, n1, begin.Add(-time.Second), map[string]string{
			"direction": "outbound", "src.namespace": closed.name,
			"error": "outbound traffic policy REGISTRY_ONLY: destination is not in the registry: " + server.ip + ":18080",
		})
	})
	t.Run("members", func(t *testing.T) {
		client.mustGet("http://" + member.ip + ":8080/")
		client.mustGet("http://member/")
		free.mustGet(direct)
	})
	for name, spec := range map[string]string{
		"static": `{hosts: [static.example.test], addresses: [198.51.100.10], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: ` + server.ip + `, ports: {http: 18080}}]}`,
		"dns":    `{hosts: [dns.example.test], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: outside.` + far.name + `.svc.cluster.local, ports: {http: 18080}}]}`,
		"none":   `{hosts: [none.example.test], addresses: [` + server.ip + `/32], resolution: NONE, ports: [{number: 18080, name: http, protocol: HTTP}]}`,
		"auto":   `{hosts: [auto.example.test], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: ` + server.ip + `, ports: {http: 18080}}]}`,
	} {
		t.Run(name, func(t *testing.T) { registered(t, closed, client, free, name, spec, direct) })
	}
	t.Run("bad-value", func(t *testing.T) {
		closed.outbound("ALLOW_ALL")
		wait(t, "an event says so", func() error {
			if told := client.events(); !strings.Contains(told, `"ALLOW_ALL"`) {
				return fmt.Errorf("events: %s", told)
			}
			return nil
		})
		client.refused(direct)
	})
	closed.outbound("")
	client.reach(direct)
	kept.unbroken()
}

// registered makes an entry and takes it away.
func registered(t *testing.T, s *space, client, free *app, name, spec, direct string) {
	host := name + ".example.test"
	url := "http://" + host + "/"
	if name == "none" {
		url = direct
	}
	s.apply("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + name + "}\nspec: " + spec + "\n")
	client.reach(url)
	if name == "dns" || name == "auto" {
		addrs, err := client.resolve(host)
		if err != nil || len(addrs) == 0 {
			t.Fatalf("%s has no addresses: %v", host, err)
		}
		out, err := kubectl(t.Context(), nil, "get", "serviceentry", "-n", s.name, name, "-o", "jsonpath={.status.addresses[*].value}")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if !netip.MustParsePrefix("240.240.0.0/16").Contains(a) && !netip.MustParsePrefix("2001:2::/48").Contains(a) || !strings.Contains(out, a.String()) {
				t.Errorf("%s is at %s, allocated are %s", host, a, out)
			}
		}
	}
	free.mustGet(direct)
	if out, err := kubectl(t.Context(), nil, "delete", "serviceentry", "-n", s.name, name); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client.refused(url)
}
