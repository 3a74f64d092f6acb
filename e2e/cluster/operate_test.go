package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Agents are replaced under load: requests on new connections never fail, and pods stay in the mesh.
func TestAgentRollout(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	client.reach("http://" + server.ip + ":8080/")
	load := client.start("load", "http://"+server.ip+":8080/")
	if _, err := kubectl(t.Context(), nil, "rollout", "restart", "-n", system, "daemonset/culvert-node"); err != nil {
		t.Fatal(err)
	}
	if _, err := kubectl(t.Context(), nil, "rollout", "status", "-n", system, "daemonset/culvert-node", "--timeout=2m"); err != nil {
		t.Fatal(err)
	}
	if err := shared.mesh.alone(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := load.faultless()
	t.Logf("%d requests while the agents were replaced", l.Requests)
	client.enrolled()
	wantTLS(t, client, server)
}

// `culvert upgrade` keeps the values of before and the pods in the mesh, and no request fails meanwhile. An upgrade that does not
// become ready says why and is undone, and nobody notices that either.
func TestUpgrade(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	client.reach("http://" + server.ip + ":8080/")
	load := client.start("load", "--pause=5ms", "http://"+server.ip+":8080/")
	mark := fmt.Sprint(time.Now().Unix())
	out, err := m.culvert(t.Context(), "upgrade", "--set-string=agent.podAnnotations.e2e="+mark+",controller.podAnnotations.e2e="+mark, "--timeout=3m")
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, m.report(t.Context()))
	}
	for _, node := range []string{n1, n2} {
		agent, err := m.agent(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		if got := agent.Annotations["e2e"]; got != mark || agent.Spec.Containers[0].Image != meshImage {
			t.Errorf("the agent on %s is annotated %q and has image %s", node, got, agent.Spec.Containers[0].Image)
		}
	}
	wantTLS(t, client, server)

	out, err = m.culvert(t.Context(), "upgrade", "--set=image.tag=missing", "--timeout=20s")
	if err == nil || !contains(out, "ErrImageNeverPull") || !contains(out, "rolled back to revision") {
		t.Errorf("an upgrade to an image that is not there: %v\n%s", err, out)
	}
	wait(t, "the agents are those of before", func() error {
		list, err := shared.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.Spec.Containers[0].Image != meshImage || !ready(&p) {
				return fmt.Errorf("%s has image %s, ready: %v", p.Name, p.Spec.Containers[0].Image, ready(&p))
			}
		}
		return nil
	})
	wantTLS(t, client, server)
	t.Logf("%d requests", load.faultless().Requests)
}

// Agents keep serving with what they know while no controller is there, and follow changes when one is back.
func TestControllerGone(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	client := ns.run("client", onNode(n1)).enrolled()
	ns.run("server", onNode(n2)).enrolled()
	ns.service("server", nil)
	client.reach("http://server/")
	ctx := context.WithoutCancel(t.Context())
	replicas := func(n int) {
		patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, n)
		if _, err := shared.client.AppsV1().Deployments(system).Patch(ctx, "culvert-controller", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
	}
	replicas(0)
	back := false
	t.Cleanup(func() {
		if !back {
			replicas(2)
		}
	})
	wait(t, "no controller is there", func() error {
		list, err := shared.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app=culvert-controller"})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
	load := client.start("load", "http://server/")
	time.Sleep(3 * time.Second) // requests go on meanwhile
	load.faultless()
	replicas(2)
	back = true
	fresh := ns.run("fresh", onNode(n2)).enrolled()
	wantTLS(t, client, fresh)
}

// Before STRICT one can see who still speaks plaintext to whom.
func TestPlaintextIsListed(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	server, client := ns.run("server", onNode(n2)).enrolled(), ns.run("client", onNode(n1)).enrolled()
	stranger := outsider(t, n1)
	stranger.reach("http://" + server.ip + ":8080/")
	wantTLS(t, client, server)
	wait(t, "`culvert plaintext` names client and server", func() error {
		out, err := m.culvert(t.Context(), "plaintext")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for line := range strings.Lines(out) {
			if contains(line, "outsider") && contains(line, server.space.name) {
				return nil
			}
		}
		return fmt.Errorf("it printed:\n%s", out)
	})
}
