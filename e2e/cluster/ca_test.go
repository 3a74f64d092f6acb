package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/culvert-mesh/culvert/identity/identitytest"
)

// The user's own authority, an intermediate in Istio's layout, signs instead of one that the controller makes; what its
// revocation list names is refused from then on, on open connections too, and nobody else notices.
func TestBroughtAuthority(t *testing.T) {
	noMesh(t)
	needNodes(t)
	n1, n2 := twoNodes(t)
	root := identitytest.NewCA(t, "cluster.local")
	authority := root.Intermediate(t)
	bring(t, root, authority)
	m := ownMesh(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	client, bad, good := ns.run("client", onNode(n1)).enrolled(), ns.run("bad", onNode(n2)).enrolled(), ns.run("good", onNode(n2)).enrolled()
	wantTLS(t, client, bad)
	wantTLS(t, client, good)
	if m.roots(t) != string(root.RootPEM()) {
		t.Errorf("agents trust another root than the user's:\n%s", m.roots(t))
	}
	chain := shown(t, bad)
	if len(chain) != 2 || !chain[1].Equal(authority.Certificate) || chain[0].CheckSignatureFrom(authority.Certificate) != nil {
		t.Fatalf("the pod shows a chain of %d certificates, issued by %s", len(chain), chain[0].Issuer)
	}

	load := client.start("load", "--pause=20ms", "http://"+good.ip+":8080/")
	open := client.start("hold", "--conns=1", bad.ip+":9000")
	m.publish(t, string(authority.CRL(t, chain[0])))
	client.refused("http://" + bad.ip + ":8080/")
	var h held
	open.stop(&h)
	if len(h.Errors) == 0 {
		t.Errorf("an open connection to a revoked peer went on: %+v", h)
	}
	wantTLS(t, client, good)
	load.faultless()

	m.publish(t, string(authority.CRL(t)))
	client.reach("http://" + bad.ip + ":8080/")
}

// bring puts the authority where the controller looks for one, until the test ends.
func bring(t *testing.T, root, authority *identitytest.CA) {
	t.Helper()
	_, err := shared.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "cacerts"}, Data: map[string][]byte{
		"ca-cert.pem": identitytest.CertificatesPEM(authority.Certificate), "ca-key.pem": identitytest.KeyPEM(t, authority.Key),
		"cert-chain.pem": identitytest.CertificatesPEM(authority.Certificate), "root-cert.pem": root.RootPEM(),
	}}
	if _, err := shared.client.CoreV1().Secrets(system).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := shared.client.CoreV1().Secrets(system).Delete(context.WithoutCancel(t.Context()), secret.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// publish puts a revocation list beside the authority, waits until the controller publishes it, and has it delivered.
func (m *installation) publish(t *testing.T, list string) {
	t.Helper()
	patch := fmt.Sprintf(`{"stringData":{"ca-crl.pem":%q}}`, list)
	if _, err := shared.client.CoreV1().Secrets(system).Patch(t.Context(), "cacerts", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the revocation list is published", func() error {
		if m.revoked(t) != list {
			return errors.New("another one is")
		}
		return nil
	})
	m.deliver(t)
}

// revoked is the revocation list that the controller publishes.
func (m *installation) revoked(t *testing.T) string {
	t.Helper()
	cm, err := m.env.client.CoreV1().ConfigMaps(system).Get(t.Context(), "culvert-ca-crl", metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return cm.Data["ca-crl.pem"]
}

// deliver has the kubelets look at the agents' volumes at once, which they would do within a minute.
func (m *installation) deliver(t *testing.T) {
	t.Helper()
	_, err := kubectl(t.Context(), nil, "annotate", "pods", "-n", system, "-l", "app=culvert-node", "--overwrite", fmt.Sprintf("e2e=%d", time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
}

// shown is the chain that a pod shows to whoever calls its tunnel port.
func shown(t *testing.T, a *app) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	dialer := &tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, // it is looked at, not trusted
		VerifyConnection: func(state tls.ConnectionState) error {
			chain = state.PeerCertificates
			return nil
		},
	}}
	conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(a.ip, "15008"))
	if err == nil {
		_ = conn.Close()
	}
	if len(chain) == 0 {
		t.Fatalf("pod %s shows no certificate: %v", a.name, err)
	}
	return chain
}

// A root is replaced by another, all of the way: the bundle grows, certificates move over to the new root, the old one goes.
// Nothing fails meanwhile. Certificates live for 20 s here, so that it takes a minute and not a quarter of a year: a new root
// signs when all that was issued without it has ended, and an old one goes when all that it signed has.
func TestRootRotation(t *testing.T) {
	noMesh(t)
	n1, n2 := twoNodes(t)
	m := ownMesh(t, "--set=agent.extraArgs={--secret-ttl=20s}",
		"--set=ca.ttl=1m", "--set=ca.maxTTL=1m", "--set=controller.extraArgs={--ca-rotation-settle=25s,--ca-rotation-overlap=30s}")
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	client.reach("http://" + server.ip + ":8080/")
	old := m.roots(t)
	load := client.start("load", "--pause=50ms", "http://"+server.ip+":8080/")
	across := client.hold(4, server.ip+":9000")

	patch := `{"metadata":{"annotations":{"culvert.io/rotate-root":"now"}}}`
	if _, err := shared.client.CoreV1().Secrets(system).Patch(t.Context(), "culvert-ca", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	wait(t, "both roots are published", func() error {
		if now := m.roots(t); count(now, "BEGIN CERTIFICATE") != 2 || !contains(now, strings.TrimSpace(old)) {
			return errRoots
		}
		return nil
	})
	// A pod whose certificate is issued now speaks with those that have theirs already, both ways.
	fresh := ns.run("fresh", onNode(n2)).enrolled()
	fresh.reach("http://" + server.ip + ":8080/")
	client.reach("http://" + fresh.ip + ":8080/")
	wait(t, "the old root is gone", func() error {
		if now := m.roots(t); count(now, "BEGIN CERTIFICATE") != 1 || contains(now, strings.TrimSpace(old)) {
			return errOldRoot
		}
		return nil
	})
	t.Logf("rotated in %v", time.Since(begin).Round(time.Second))
	last := ns.run("last", onNode(n1)).enrolled()
	wantTLS(t, last, server)
	wantTLS(t, client, fresh)
	t.Logf("held: %+v", across.unbroken())
	t.Logf("requests: %d", load.faultless().Requests)
}
