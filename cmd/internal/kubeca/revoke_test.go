package kubeca_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

// list returns the only list that is published, if it is one that issuer has signed.
func (c *cluster) list(issuer *x509.Certificate) *x509.RevocationList {
	c.t.Helper()
	block, rest := pem.Decode([]byte(c.published(kubeca.RevokedName, kubeca.RevokedKey)))
	if block == nil || len(rest) > 0 {
		return nil
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil || list.CheckSignatureFrom(issuer) != nil {
		return nil
	}
	return list
}

// rounds waits until all replicas have looked at the Secrets a few times.
func (c *cluster) rounds() {
	c.t.Helper()
	before := c.Count("get secrets")
	eventually(c.t, "a few rounds", func() bool { return c.Count("get secrets") > before+20 })
}

func (c *cluster) revoke(serials string) {
	c.t.Helper()
	c.edit(kubeca.SecretName, func(s *corev1.Secret) { s.Data[kubeca.RevokedSerials] = []byte(serials) })
}

// TestBroughtKeepsRevoked has a user bring an authority while certificates below the old root, which everybody trusts for
// months to come, are revoked. More of them can be.
func TestBroughtKeepsRevoked(t *testing.T) {
	c := newCluster(t)
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	ready(t, ca)
	old := ca.Bundle().Certificates()[0]
	names := func(n int) bool {
		list := c.list(old)
		return list != nil && len(list.RevokedCertificateEntries) == n
	}
	c.revoke("BEEF # stolen\n")
	eventually(t, "list published", func() bool { return names(1) })
	c.bring(identitytest.NewCA(t, "td"))
	eventually(t, "new root published", func() bool { return c.roots() == 2 })
	c.rounds()
	if !names(1) {
		t.Fatal("the old root is trusted, and signs, but what is revoked below it is not any more")
	}
	c.revoke("BEEF # stolen\nCAFE # stolen later\n")
	eventually(t, "new list published", func() bool { return names(2) })
	updates := c.Count("update secrets")
	c.rounds()
	if n := c.Count("update secrets"); n != updates {
		t.Errorf("%d updates that nobody needs", n-updates)
	}
}

// TestRevokedStaysWhenSecretIsDeleted: a Secret that somebody deletes comes back from memory, and what was revoked stays so.
func TestRevokedStaysWhenSecretIsDeleted(t *testing.T) {
	c := newCluster(t)
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	ready(t, ca)
	c.revoke("BEEF # stolen\n")
	root := ca.Bundle().Certificates()[0]
	eventually(t, "list published", func() bool { return c.list(root) != nil })
	if err := c.CoreV1().Secrets(namespace).Delete(t.Context(), kubeca.SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.rounds()
	if got := c.secret(kubeca.SecretName).Data[kubeca.RevokedSerials]; string(got) != "BEEF # stolen\n" {
		t.Errorf("the entry became %q", got)
	}
	if list := c.list(root); list == nil || len(list.RevokedCertificateEntries) != 1 {
		t.Error("what was revoked is not any more")
	}
}

// TestBroughtKeepsLists has a user replace the authority that he has brought by another one, with its own list.
func TestBroughtKeepsLists(t *testing.T) {
	c := newCluster(t)
	one, two := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	c.bring(one)
	list, next := string(one.CRL(t)), string(two.CRL(t))
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyCRL] = []byte(list) })
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	eventually(t, "list published", func() bool { return c.published(kubeca.RevokedName, kubeca.RevokedKey) == list })
	c.bring(two)
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyCRL] = []byte(next) })
	eventually(t, "new list published", func() bool { return strings.Contains(c.published(kubeca.RevokedName, kubeca.RevokedKey), next) })
	if c.roots() != 2 || !strings.Contains(c.published(kubeca.RevokedName, kubeca.RevokedKey), list) {
		t.Errorf("of %d roots that are trusted the old one's list is lost", c.roots())
	}
}

// TestBroughtIntermediates has a user replace one intermediate by another below the same root. Certificates below the first
// are still valid, and so is its list.
func TestBroughtIntermediates(t *testing.T) {
	c := newCluster(t)
	root := identitytest.NewCA(t, "td")
	one, two := root.Intermediate(t), root.Intermediate(t)
	c.bring(one)
	list := string(one.CRL(t))
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyCRL] = []byte(list) })
	ca := newCA(t, c, nil)
	run(t, ca.Run, ca.Lead)
	eventually(t, "list published", func() bool { return c.published(kubeca.RevokedName, kubeca.RevokedKey) == list })
	c.bring(two)
	eventually(t, "the second signs", func() bool {
		block, _ := pem.Decode(c.secret(kubeca.SecretName).Data[authority.KeyCert])
		return bytes.Equal(block.Bytes, two.Certificate.Raw)
	})
	both := list + string(two.CRL(t))
	c.edit(kubeca.BroughtName, func(s *corev1.Secret) { s.Data[authority.KeyCRL] = []byte(both) })
	c.rounds()
	if got := c.published(kubeca.RevokedName, kubeca.RevokedKey); got != both {
		t.Errorf("%d of two lists published: %v", strings.Count(got, "BEGIN X509 CRL"), ca.Status().Trouble)
	}
}
