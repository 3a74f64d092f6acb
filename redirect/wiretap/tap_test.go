package wiretap_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/topology"
	"github.com/culvert-mesh/culvert/redirect/wiretap"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func pair(t *testing.T) *topology.Pair {
	t.Helper()
	netnstest.Require(t)
	p, err := topology.NewPair("client", "server", "reno")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// converse connects from client to server, sends the text and wants it back; wrap makes the connections what they are.
func converse(t *testing.T, p *topology.Pair, addr netip.AddrPort, text string, client, server func(net.Conn) net.Conn) {
	t.Helper()
	l, err := p.B.Listen(t.Context(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	netnstest.Serve(t, l, func(c net.Conn) {
		c = server(c)
		io.Copy(c, c)
		c.Close()
	})
	raw, err := p.A.Dial(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	c := client(raw)
	got := make([]byte, len(text))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("echo failed: %v", err)
	}
	c.Close()
}

func TestTellsPlainFromTLS(t *testing.T) {
	p := pair(t)
	const word = "the-answer-is-42"
	text := strings.Repeat("x", 200_000) + word + strings.Repeat("y", 100_000) // larger than any one packet
	tap, err := wiretap.Start(wiretap.Config{NS: p.B.NS(), Interface: topology.PodInterface, Needles: [][]byte{[]byte(word), []byte("never sent")}})
	if err != nil {
		t.Fatal(err)
	}
	plain := func(c net.Conn) net.Conn { return c }
	config := tlsConfig(t)
	secureClient := func(c net.Conn) net.Conn { return tls.Client(c, config) }
	secureServer := func(c net.Conn) net.Conn { return tls.Server(c, config) }
	converse(t, p, netip.AddrPortFrom(p.B.Addr(), 8080), text, plain, plain)
	converse(t, p, netip.AddrPortFrom(p.B.Addr6(), 8081), text, plain, plain)
	converse(t, p, netip.AddrPortFrom(p.B.Addr(), 15008), text, secureClient, secureServer)

	report, err := tap.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if !report.Complete() {
		t.Fatalf("incomplete: %v", report)
	}
	if len(report.Flows) != 3 || !report.Found[0] || report.Found[1] {
		t.Fatalf("found %v in:\n%v", report.Found, report)
	}
	var ports []uint16
	for _, f := range report.With(0) {
		ports = append(ports, f.Server.Port())
		if f.ToServer.Bytes != uint64(len(text)) || f.ToClient.Bytes != uint64(len(text)) {
			t.Errorf("%v: %d and %d bytes, want %d", f, f.ToServer.Bytes, f.ToClient.Bytes, len(text))
		}
	}
	if len(ports) != 2 || ports[0]+ports[1] != 8080+8081 {
		t.Errorf("the word was found on ports %v, want 8080 and 8081", ports)
	}
	for _, f := range report.Flows {
		if want := f.Server.Port() == 15008; f.Encrypted() != want {
			t.Errorf("%v: encrypted=%t", f, f.Encrypted())
		}
	}
	if got := report.Unencrypted(15008); len(got) != 2 {
		t.Errorf("unencrypted: %v", got)
	}
}

func TestHearsOnlyItsInterface(t *testing.T) {
	p := pair(t)
	tap, err := wiretap.Start(wiretap.Config{NS: p.B.NS(), Interface: "lo", Needles: [][]byte{[]byte("word")}})
	if err != nil {
		t.Fatal(err)
	}
	plain := func(c net.Conn) net.Conn { return c }
	converse(t, p, netip.AddrPortFrom(p.B.Addr(), 8080), "word", plain, plain)
	report, err := tap.Stop()
	if err != nil || report.Packets != 0 {
		t.Errorf("%v, %v", report, err)
	}
}

func TestReportWhileRunning(t *testing.T) {
	p := pair(t)
	tap, err := wiretap.Start(wiretap.Config{NS: p.B.NS(), Interface: topology.PodInterface, Needles: [][]byte{[]byte("word")}})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Stop()
	plain := func(c net.Conn) net.Conn { return c }
	converse(t, p, netip.AddrPortFrom(p.B.Addr(), 8080), "word", plain, plain)
	for deadline := time.Now().Add(10 * time.Second); !tap.Report().Found[0]; {
		if time.Now().After(deadline) {
			t.Fatal("the word is not in the report")
		}
	}
}

func TestStartRefuses(t *testing.T) {
	ns := netnstest.New(t)
	for name, cfg := range map[string]wiretap.Config{
		"no_namespace": {Interface: "lo"},
		"no_interface": {NS: ns},
		"no_such":      {NS: ns, Interface: "eth7"},
		"empty_needle": {NS: ns, Interface: "lo", Needles: [][]byte{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			tap, err := wiretap.Start(cfg)
			if err == nil {
				tap.Stop()
				t.Error("taken")
			}
		})
	}
}

// tlsConfig serves and trusts one certificate.
func tlsConfig(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      roots, ServerName: "server", MinVersion: tls.VersionTLS13,
	}
}
