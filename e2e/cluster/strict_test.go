package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// probes gives the pod all three kinds of probes of one sort, often and impatient.
func probes(handler corev1.ProbeHandler) shape {
	return func(p *corev1.Pod) {
		probe := func() *corev1.Probe {
			return &corev1.Probe{ProbeHandler: handler, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 2}
		}
		c := &p.Spec.Containers[0]
		c.Args = []string{"serve", "--grpc=:9090"}
		c.LivenessProbe, c.ReadinessProbe = probe(), probe()
		c.StartupProbe = probe()
		c.StartupProbe.FailureThreshold = 60
	}
}

// The kubelet's probes reach pods that take no plaintext; nobody else does, from inside or outside of the node.
func TestProbesUnderStrict(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	handlers := map[string]corev1.ProbeHandler{
		"http": {HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: portNumber(8080)}},
		"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: portNumber(9000)}},
		"grpc": {GRPC: &corev1.GRPCAction{Port: 9090}},
	}
	var pods []*app
	for name, handler := range handlers {
		pods = append(pods, ns.pod(name, onNode(n1), probes(handler)))
	}
	late := namespace(t)
	late.strict()
	old := late.run("old", onNode(n2), probes(handlers["http"]))
	late.enrol()
	for _, a := range append(pods, old) {
		a.ready().enrolled()
	}
	stranger := outsider(t, n1)
	host := stranger.space.run("host", onNode(n1), onHostNetwork, withArgs("serve", "--http=:18080", "--echo="))
	for _, a := range pods {
		stranger.refused("http://" + a.ip + ":8080/")
		host.refused("http://" + a.ip + ":8080/")
	}
	if shared.nodes != nil {
		wait(t, "a process of the node is refused", func() error { return refusedOnNode(t.Context(), n1, pods[0].ip) })
	}
	pods[0].mustGet("http://" + pods[1].ip + ":8080/")

	consistently(t, "probed pods", 8*time.Second, func() error {
		for _, a := range append(pods, old) {
			p, err := a.get()
			if err != nil {
				return err
			}
			if !ready(p) || a.restarts() > 0 {
				return fmt.Errorf("%s is not ready or was started %d times again: %s", a.name, a.restarts(), a.events())
			}
		}
		return nil
	})
}

// A namespace that takes no plaintext leaves the mesh under load: no request fails, though its pods leave one after the other
// and are sent plaintext from then on.
func TestUnlabelUnderStrict(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	far, near, server := ns.run("far", onNode(n1)).enrolled(), ns.run("near", onNode(n2)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	wantTLS(t, far, server)
	across, beside := far.start("load", "http://"+server.ip+":8080/"), near.start("load", "http://"+server.ip+":8080/")
	for range 2 {
		ns.leave()
		for _, a := range []*app{far, near, server} {
			a.released()
		}
		// Coming back is another matter: whoever is out still when the server is in is refused, as policy wants it.
		t.Logf("requests while leaving: %d between nodes, %d on one", across.faultless().Requests, beside.faultless().Requests)
		ns.enrol()
		for _, a := range []*app{far, near, server} {
			a.enrolled()
		}
		across, beside = far.start("load", "http://"+server.ip+":8080/"), near.start("load", "http://"+server.ip+":8080/")
	}
	across.faultless()
	beside.faultless()
}

// refusedOnNode is nil when a process of the node, outside of all pods and not the kubelet, gets no answer.
func refusedOnNode(ctx context.Context, node, ip string) error {
	script := fmt.Sprintf(`exec 3<>/dev/tcp/%s/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && timeout 3 head -c 12 <&3`, ip)
	out, _ := shared.nodes.Node(node).Command(ctx, "timeout", "5", "bash", "-c", script).Output() // refusals are errors
	if len(out) > 0 {
		return fmt.Errorf("it got %q", out)
	}
	return nil
}

// Clients on the host network reach the ports that an annotation opens for them, and no others.
func TestHostPorts(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	server := ns.run("server", onNode(n2), withArgs("serve", "--http=:8080,:8081"), withAnnotation("culvert.io/allow-host-ports", "8081")).enrolled()
	for _, node := range []string{n1, n2} {
		host := namespace(t).run("host", onNode(node), onHostNetwork, withArgs("serve", "--http=:18080", "--echo="))
		host.reach("http://" + server.ip + ":8081/")
		host.refused("http://" + server.ip + ":8080/")
	}
	outsider(t, n2).refused("http://" + server.ip + ":8081/")
}

// Annotations take ports and ranges out of the mesh, in both directions. That all else is in it shows at pods that take no
// plaintext.
func TestPortCarveOuts(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	const prefix = "traffic.sidecar.istio.io/"
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	two := withArgs("serve", "--http=:8080,:8081")
	stranger := outsider(t, n1)
	t.Run("excludeInboundPorts", func(t *testing.T) {
		server := ns.run("exclude-in", onNode(n2), two, withAnnotation(prefix+"excludeInboundPorts", "8081")).enrolled()
		stranger.reach("http://" + server.ip + ":8081/")
		stranger.refused("http://" + server.ip + ":8080/")
	})
	t.Run("includeInboundPorts", func(t *testing.T) {
		server := ns.run("include-in", onNode(n2), two, withAnnotation(prefix+"includeInboundPorts", "8080")).enrolled()
		stranger.reach("http://" + server.ip + ":8081/")
		stranger.refused("http://" + server.ip + ":8080/")
	})
	server := ns.run("server", onNode(n2), two).enrolled()
	url := func(port int) string { return fmt.Sprintf("http://%s:%d/", server.ip, port) }
	t.Run("excludeOutboundPorts", func(t *testing.T) {
		client := ns.run("exclude-out", onNode(n1), withAnnotation(prefix+"excludeOutboundPorts", "8081")).enrolled()
		client.reach(url(8080))
		client.refused(url(8081))
	})
	t.Run("excludeOutboundIPRanges", func(t *testing.T) {
		client := ns.run("exclude-range", onNode(n1), withAnnotation(prefix+"excludeOutboundIPRanges", server.ip+"/32")).enrolled()
		client.refused(url(8080))
	})
	t.Run("includeOutboundIPRanges", func(t *testing.T) {
		client := ns.run("include-range", onNode(n1), withAnnotation(prefix+"includeOutboundIPRanges", server.ip+"/32")).enrolled()
		client.reach(url(8080))
		other := ns.run("include-other", onNode(n1), withAnnotation(prefix+"includeOutboundIPRanges", "203.0.113.0/24")).enrolled()
		other.refused(url(8080))
	})
	t.Run("live", func(t *testing.T) { // annotations that change on a running pod
		client := ns.run("live", onNode(n1)).enrolled()
		client.reach(url(8080))
		client.annotate(prefix+"excludeOutboundPorts", "8080")
		client.refused(url(8080))
		client.annotate(prefix+"excludeOutboundPorts", "")
		client.reach(url(8080))
	})
}
