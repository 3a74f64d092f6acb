package netlab_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// revocations is a file of revocation lists of the lab's authority.
type revocations struct {
	t    *testing.T
	path string
	cert *x509.Certificate
	key  crypto.Signer
}

func (m *mesh) revocations(name string) *revocations {
	m.t.Helper()
	pair, err := tls.LoadX509KeyPair(m.CACert(), m.CAKey())
	if err != nil {
		m.t.Fatal(err)
	}
	return &revocations{t: m.t, path: filepath.Join(m.Topology().Dir(), name), cert: pair.Leaf, key: pair.PrivateKey.(crypto.Signer)}
}

// revoke replaces the file by a list of the given serial numbers.
func (r *revocations) revoke(serials ...string) {
	r.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		n, ok := new(big.Int).SetString(s, 10)
		if !ok {
			r.t.Fatalf("serial number %q", s)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, r.cert, r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func (r *revocations) write(content []byte) {
	r.t.Helper()
	err := os.WriteFile(r.path+".new", content, 0o644)
	if err == nil {
		err = os.Rename(r.path+".new", r.path)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// Reference 10.4 crl_inbound_rejects_revoked_cert, crl_outbound_rejects_revoked_cert and the two that terminate existing
// connections: whichever side knows of the revocation ends what is there and refuses what comes. Each agent has a list
// of its own, so that only one of them knows.
func TestRevocation(t *testing.T) {
	t.Parallel()
	m := build(t)
	atA, atB := m.revocations("a.crl"), m.revocations("b.crl")
	m.a, m.b = m.agent(nodeA, "--crl="+atA.path), m.agent(nodeB, "--crl="+atB.path) // the files come later
	for _, tt := range []struct {
		name     string
		list     *revocations
		agent    *netlab.Agent // who knows
		owner    *netlab.Agent // whose certificate it is
		account  string
		reporter string
		other    *netlab.Pod // whose connections to or from the pod are not concerned
	}{
		{"outbound", atA, m.a, m.b, "remote", "source", nil},
		{"inbound", atB, m.b, m.a, "client", "destination", m.local},
	} {
		t.Run(tt.name, func(t *testing.T) {
			revoked := m.serial(tt.owner, tt.account)
			held, bystander := m.hold(m.client, m.remote), m.hold(m.client, m.local)
			var sibling *session
			if tt.other != nil {
				sibling = m.hold(tt.other, m.remote)
			}
			tt.list.revoke(revoked)
			m.wantReset(held)
			m.refused(m.client, at(m.remote))
			m.wantMetric(tt.agent, "istio_crl_policy_rejections_total", 2, `reporter="`+tt.reporter+`"`)
			m.wantMetric(tt.agent, "istio_tcp_connections_failed_total", 1, `response_flags="CERT_REVOKED"`, `reporter="`+tt.reporter+`"`)
			_, err := tt.agent.WaitRecord(patience, func(r netlab.Record) bool {
				return r.Str("direction") == tt.name && r.Str("src.workload") == "client" && r.Str("dst.workload") == "remote" &&
					strings.HasPrefix(r.Str("error"), "revoked: peer "+spiffe(tt.account)+":")
			})
			if err != nil {
				t.Errorf("no access-log line about the revocation: %v", err)
			}
			m.alive(bystander, "of another pair")
			if sibling != nil {
				m.alive(sibling, "of another client")
				m.mustCall(tt.other, at(m.remote), "remote")
			}
			// A list that cannot be read changes nothing.
			tt.list.write([]byte("-----BEGIN X509 CRL-----\nbm8=\n-----END X509 CRL-----\n"))
			m.eventually("faulty list is reported", func() bool { return strings.Contains(tt.agent.Log(), tt.list.path) })
			m.refused(m.client, at(m.remote))
			tt.list.revoke()
			m.eventually("not revoked any more", func() bool { _, err := m.call(m.client, at(m.remote)); return err == nil })
		})
	}
}
