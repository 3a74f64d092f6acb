package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// haproxy is a pair of HAProxies: plaintext from the client on loopback, mutual TLS between the namespaces, plaintext to
// the server on loopback.
type haproxy struct {
	lab            *lab
	client, server *topology.Process
	about          string
}

// tlsPort is where the server's side takes an application's connections.
func tlsPort(a app) uint16 { return a.port + 10_000 }

func (h *haproxy) start(ctx context.Context, l *lab) error {
	h.lab = l
	if out, err := exec.CommandContext(ctx, "haproxy", "-v").Output(); err == nil {
		h.about, _, _ = strings.Cut(string(out), "\n")
	}
	files, err := writeCertificates(l.dir)
	if err != nil {
		return err
	}
	sides := []struct {
		name, config string
		pod          *topology.Pod
		process      **topology.Process
		port         uint16
	}{
		{"haproxy-server", haproxyServer(l, files), l.server(), &h.server, tlsPort(appHold)},
		{"haproxy-client", haproxyClient(l, files), l.client(), &h.client, appHold.port},
	}
	for _, s := range sides {
		conf := filepath.Join(l.dir, s.name+".cfg")
		if err := os.WriteFile(conf, []byte(s.config), 0o644); err != nil {
			return err
		}
		if *s.process, err = l.start(s.pod, s.name, []string{"haproxy", "-db", "-f", conf}); err != nil {
			return err
		}
		if err := waitListening(s.pod, s.port, 10*time.Second); err != nil {
			log, _ := os.ReadFile(filepath.Join(l.dir, s.name+".log"))
			return fmt.Errorf("%s: %w: %s", s.name, err, log)
		}
	}
	return nil
}

func (h *haproxy) target(a app) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.port)
}

func (h *haproxy) agents() []*topology.Process      { return []*topology.Process{h.client, h.server} }
func (h *haproxy) descriptors() int                 { return 2 }
func (h *haproxy) check(context.Context, int) error { return nil }
func (h *haproxy) version() string                  { return h.about }

func (h *haproxy) stop() error {
	for _, p := range h.agents() {
		if p != nil {
			_ = p.Stop(5 * time.Second) // what it says at its end is not measured
		}
	}
	return nil
}

// haproxyCommon is what both sides have: TLS 1.3 with AES-128, no resumption of sessions, raw TCP.
func haproxyCommon() string {
	return fmt.Sprintf(`global
  nbthread 2
  maxconn %d
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets
  tune.ssl.cachesize 0
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
`, descriptorLimit()/2-200)
}

func haproxyClient(l *lab, c certificates) string {
	var b strings.Builder
	b.WriteString(haproxyCommon())
	for _, a := range apps() {
		fmt.Fprintf(&b, "listen %s\n  bind 127.0.0.1:%d\n  server s %s:%d ssl verify required verifyhost server ca-file %s crt %s no-ssl-reuse\n",
			a.name, a.port, l.server().Addr(), tlsPort(a), c.roots, c.client)
	}
	return b.String()
}

func haproxyServer(l *lab, c certificates) string {
	var b strings.Builder
	b.WriteString(haproxyCommon())
	for _, a := range apps() {
		fmt.Fprintf(&b, "listen %s\n  bind %s:%d ssl crt %s ca-file %s verify required\n  server s 127.0.0.1:%d\n",
			a.name, l.server().Addr(), tlsPort(a), c.server, c.roots, a.port)
	}
	return b.String()
}

// descriptorLimit is how many descriptors a process may have.
func descriptorLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Max, 1<<20))
}
