package cluster

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods that started while no plugin was there do not stay in plaintext unseen: the agent enrols them before it says that it
// is ready. A node with the taint takes no pods until then.
func TestNoPlaintextBeforePlugin(t *testing.T) {
	noMesh(t)
	n1, n2 := twoNodes(t)
	taint(t, n2, true)
	ns := namespace(t, modeLabel+"=ambient")
	client, server := ns.run("client", onNode(n1)), ns.run("server", onNode(n1))
	tainted := ns.pod("tainted", func(p *corev1.Pod) {
		p.Spec.Tolerations = nil
		p.Spec.NodeSelector = map[string]string{"kubernetes.io/hostname": n2}
	})
	stranger := outsider(t, n1)
	stranger.mustGet("http://" + server.ip + ":8080/")
	if p, err := tainted.get(); err != nil || p.Spec.NodeName != "" {
		t.Fatalf("the tainted node took a pod before its agent was ready: %v %v", p.Spec.NodeName, err)
	}

	mesh(t)
	// Ready means: whatever was there is captured. No waiting here. Who has no certificate yet, because the controller is new
	// as well, is pending: refused, and not in plaintext.
	for _, a := range []*app{client, server} {
		p, err := a.get()
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Annotations[redirected]; got != "enabled" && got != "pending" {
			t.Errorf("the agents are ready and %s has redirection %q", a.name, got)
		}
	}
	client.enrolled()
	server.enrolled()
	ns.strict()
	tainted.ready().enrolled()
	client.reach("http://" + server.ip + ":8080/")
	tainted.reach("http://" + server.ip + ":8080/")
	stranger.refused("http://" + server.ip + ":8080/")
}

// A node whose plug was pulled comes up by itself, and so does a whole cluster at once: the pods of the mesh do not wait for
// an agent that waits for them, and those enrolled are enrolled again before they speak.
func TestColdNodeComesUp(t *testing.T) {
	mesh(t)
	nodes := needNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	client, server := ns.run("client", onNode("node1")).enrolled(), ns.run("server", onNode("node2")).enrolled()
	ns.service("server", nil)
	plain := outsider(t, "node2")
	client.reach("http://server/")

	for _, reboot := range [][]string{{"node2"}, {"node1", "node2"}} {
		before := map[*app]string{client: client.container(), server: server.container(), plain: plain.container()}
		for _, name := range reboot {
			if err := nodes.Reboot(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		for a := range before {
			if a.node == "node1" && len(reboot) == 1 {
				continue
			}
			wait(t, "pod "+a.name+" runs again", func() error {
				p, err := a.get()
				if err != nil {
					return err
				}
				if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].ContainerID == before[a] || !ready(p) {
					return fmt.Errorf("it is %s: %s", p.Status.Phase, a.events())
				}
				return nil
			})
			a.ready()
		}
		if err := nodes.Ready(t.Context(), patience); err != nil {
			t.Fatal(err)
		}
		client.enrolled()
		server.enrolled()
		client.reach("http://server/")
		wantTLS(t, client, server)
		plain.refused("http://" + server.ip + ":8080/")
	}
}

// taint puts the mesh's taint on a node or takes it away; the test takes it away in the end.
func taint(t *testing.T, node string, on bool) {
	t.Helper()
	n, err := shared.client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := `{"spec":{"taints":null}}`
	if on {
		if len(n.Spec.Taints) > 0 {
			t.Skipf("node %s has taints of its own", node)
		}
		patch = `{"spec":{"taints":[{"key":"culvert.io/agent-not-ready","effect":"NoSchedule"}]}}`
		t.Cleanup(func() {
			_, err := kubectl(context.WithoutCancel(t.Context()), nil, "taint", "node", node, "culvert.io/agent-not-ready-")
			_ = err // the controller has removed it, as it should
		})
	}
	if _, err := shared.client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}
