package cluster

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const strictManifest = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`

// strict makes every pod of the namespace refuse plaintext.
func (s *space) strict() { s.apply(strictManifest) }

// outsider is a pod outside of the mesh.
func outsider(t *testing.T, node string) *app {
	t.Helper()
	return namespace(t).run("outsider", onNode(node))
}

// wantTLS asks the server once by its address and waits for the log line of its node's agent that proves the client.
func wantTLS(t *testing.T, client, server *app) {
	t.Helper()
	begin := since()
	client.reach("http://" + server.ip + ":8080/")
	shared.mesh.wantRecord(t, server.node, begin, map[string]string{
		"direction": "inbound", "src.identity": client.identity(), "dst.identity": server.identity(),
	})
}

// Pods that run already are found and enrolled when their namespace is labelled: same processes, same address.
func TestEnrolRunningPod(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t)
	client, server := ns.run("client", onNode(n1)), ns.run("server", onNode(n2))
	client.mustGet("http://" + server.ip + ":8080/")
	before := server.container()

	ns.enrol()
	client.enrolled()
	server.enrolled()
	wantTLS(t, client, server)

	ns.strict()
	stranger := outsider(t, n1)
	stranger.refused("http://" + server.ip + ":8080/")
	client.mustGet("http://" + server.ip + ":8080/")
	if after := server.container(); after != before {
		t.Errorf("the server's container was %s and is %s: it was started again", before, after)
	}
}

// container is the ID of the pod's running container.
func (a *app) container() string {
	a.t.Helper()
	p, err := a.get()
	if err != nil {
		a.t.Fatal(err)
	}
	if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Running == nil {
		return ""
	}
	return p.Status.ContainerStatuses[0].ContainerID
}

// A pod that starts in a labelled namespace is in the mesh before its first instruction: its very first connection is
// accepted by a server that takes no plaintext.
func TestEnrolNewPod(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	server := ns.run("server", onNode(n2)).enrolled()
	ns.strict()
	stranger := outsider(t, n1)
	stranger.refused("http://" + server.ip + ":8080/")

	begin := since()
	first := ns.pod("first", onNode(n1), withArgs("get", "--timeout=10s", "http://"+server.ip+":8080/"), func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
	})
	wait(t, "the first request is answered", func() error {
		p, err := first.get()
		if err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("the pod is %s: %s", p.Status.Phase, first.events())
		}
		return nil
	})
	text, err := kubectl(t.Context(), nil, "logs", "-n", ns.name, "first")
	if err != nil {
		t.Fatal(err)
	}
	if !contains(text, `"status":200`) {
		t.Errorf("the first request of the pod's life: %s", text)
	}
	shared.mesh.wantRecord(t, n2, begin, map[string]string{"direction": "inbound", "src.identity": first.identity()})
}

// Labels of pods and namespaces come and go under load; no request fails, and a pod that is out is out entirely.
func TestLabelAndUnlabel(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t)
	client, server := ns.run("client", onNode(n1)), ns.run("server", onNode(n2))
	load := client.start("load", "http://"+server.ip+":8080/")
	for range 3 {
		ns.enrol()
		client.enrolled()
		server.enrolled()
		wantTLS(t, client, server)
		ns.leave()
		client.released()
		server.released()
		if shared.nodes != nil {
			wait(t, "the rules are gone", func() error {
				if client.captured() || server.captured() {
					return errors.New("a table is there")
				}
				return nil
			})
		}
		client.mustGet("http://" + server.ip + ":8080/")
	}
	got := load.faultless()
	t.Logf("%d requests during three rounds", got.Requests)

	t.Run("pod", func(t *testing.T) {
		ns := namespace(t, modeLabel+"=ambient")
		in := ns.run("in", onNode(n1))
		out := ns.run("out", onNode(n1), withLabel(modeLabel, "none"))
		in.enrolled()
		consistently(t, "a pod that opts out", 2*time.Second, func() error {
			p, err := out.get()
			if err == nil && p.Annotations[redirected] != "" {
				err = fmt.Errorf("redirection is %q", p.Annotations[redirected])
			}
			return err
		})
	})
}
