package cluster

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
)

// roots is the bundle that agents trust, as the controller publishes it.
func (m *installation) roots(t *testing.T) string {
	t.Helper()
	cm, err := m.env.client.CoreV1().ConfigMaps(system).Get(t.Context(), "culvert-ca-root", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cm.Data["root-cert.pem"]
}

// authority is a client of the certificate service that shows a token.
func (m *installation) authority(t *testing.T, token string) *ca.Client {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ca.New(ca.Config{
		Address: m.controller(t), RootCA: m.roots(t), TokenFile: file, ClusterID: "Kubernetes", Impersonate: true,
		AltHostname: "culvert-controller." + system + ".svc", Timeout: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// controller is an address of the controller that this machine reaches.
func (m *installation) controller(t *testing.T) string {
	t.Helper()
	needNodes(t) // another cluster's pods are not reached from here
	list, err := m.env.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app=culvert-controller"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if ready(&p) {
			return net.JoinHostPort(p.Status.PodIP, "15012")
		}
	}
	t.Fatal("no controller is ready")
	return ""
}

// token is a token of a service account, for an audience, bound to a pod unless that is empty.
func token(t *testing.T, ns, account, pod, audience string) string {
	t.Helper()
	args := []string{"create", "token", "-n", ns, account, "--audience=" + audience}
	if pod != "" {
		args = append(args, "--bound-object-kind=Pod", "--bound-object-name="+pod)
	}
	text, err := kubectl(t.Context(), nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// An agent gets certificates for the service accounts of live pods on its own node, and for no others; nobody else gets any.
func TestNodeAuthorizer(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	near, far := ns.run("near", onNode(n1)), ns.run("far", onNode(n2))
	agent, err := m.agent(t.Context(), n1)
	if err != nil {
		t.Fatal(err)
	}
	const audience = "istio-ca"
	bound := token(t, system, "culvert-node", agent.Name, audience)
	for _, tt := range []struct {
		name, token, account string
		granted              bool
	}{
		{"pod-of-the-node", bound, near.name, true},
		{"pod-of-another-node", bound, far.name, false},
		{"account-without-pod", bound, "default", false},
		{"token-without-pod", token(t, system, "culvert-node", "", audience), near.name, false},
		{"token-for-another-audience", token(t, system, "culvert-node", agent.Name, "https://kubernetes.default.svc"), near.name, false},
		{"token-of-a-workload", token(t, ns.name, near.name, near.name, audience), far.name, false},
		{"no-token", "nonsense", near.name, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, err := identity.Parse("spiffe://cluster.local/ns/" + ns.name + "/sa/" + tt.account)
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.authority(t, tt.token).Fetch(t.Context(), id)
			if tt.granted && err != nil {
				t.Errorf("refused: %v", err)
			}
			if !tt.granted && err == nil {
				t.Errorf("a certificate for %s was issued", id)
			}
			t.Logf("answer: %v", err)
		})
	}
	t.Run("pod-that-is-gone", func(t *testing.T) {
		now := int64(0)
		if err := shared.client.CoreV1().Pods(ns.name).Delete(t.Context(), near.name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		id, err := identity.Parse(near.identity())
		if err != nil {
			t.Fatal(err)
		}
		client := m.authority(t, bound)
		wait(t, "no certificate for a pod that is gone", func() error {
			if _, err := client.Fetch(t.Context(), id); err != nil {
				return nil
			}
			return errIssued
		})
	})
}
