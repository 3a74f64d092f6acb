package kubeca_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/ca/server"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const serviceName = "culvert-controller.culvert-system.svc"

// controller is all that a replica of the controller has for certificates, on a
// socket.
type controller struct {
	*cluster
	ca      *kubeca.CA
	pods    *pods
	reviews *reviews
	address string
	roots   string // file
}

func startController(t *testing.T, c *cluster, change func(*kubeca.Config)) *controller {
	t.Helper()
	ctl := &controller{cluster: c, ca: newCA(t, c, change), pods: &pods{}, reviews: newReviews(c)}
	run(t, ctl.ca.Run, ctl.ca.Lead)
	ready(t, ctl.ca)
	authorizer := newAuthorizer(t, ctl.pods, -1)
	srv, err := server.New(server.Config{
		Authority: ctl.ca, TrustDomain: td, Authenticate: newAuthenticator(t, c, nil).Authenticate, Authorize: authorizer.Authorize,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctl.address = identitytest.ServeGRPC(t, ctl.ca.Serving([]string{serviceName}), srv.Register)
	ctl.roots = filepath.Join(t.TempDir(), "root-cert.pem")
	return ctl
}

// mount does what the kubelet does with a ConfigMap.
func (c *controller) mount() {
	c.t.Helper()
	content := c.published(kubeca.RootsName, kubeca.RootsKey)
	if content == "" {
		return
	}
	temporary := c.roots + ".new"
	if err := os.WriteFile(temporary, []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(temporary, c.roots); err != nil {
		c.t.Fatal(err)
	}
}

// agent schedules the agent of a node and returns its client.
func (c *controller) agent(node string) *ca.Client {
	c.t.Helper()
	tok := agentToken(c.t, node, time.Now().Add(time.Hour))
	c.reviews.know(tok, accepted(namespace, "culvert-node", "agent-"+node, "uid-"+node, node))
	path := filepath.Join(c.t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(tok), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.mount()
	client, err := ca.New(ca.Config{Address: c.address, RootCA: c.roots, AltHostname: serviceName, TokenFile: path, Impersonate: true, TTL: 20 * time.Hour})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestWhole is the way of a certificate, and of a lie, through everything.
func TestWhole(t *testing.T) {
	ctl := startController(t, newCluster(t), nil)
	eventually(t, "bundle published", func() bool { return ctl.cluster.roots() == 1 })
	a, b := ctl.agent("a"), ctl.agent("b")
	ctl.pods.set(agentPod("agent-a", "uid-a", "a"), agentPod("agent-b", "uid-b", "b"), appPod("web-1", "web", "a"), appPod("api-1", "api", "b"))
	api := identity.MustParse("spiffe://td/ns/default/sa/api")
	s, err := a.Fetch(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(time.Now()); err != nil || s.ID != web {
		t.Errorf("identity %s: %v", s.ID, err)
	}
	if _, err := a.Fetch(t.Context(), api); err == nil || !strings.HasSuffix(err.Error(), "Unauthenticated: request authenticate failure") {
		t.Errorf("an identity of another node: %v", err)
	}
	if _, err := b.Fetch(t.Context(), api); err != nil {
		t.Errorf("on its own node: %v", err)
	}
	// The agent of a is replaced; the old one still has its token.
	ctl.pods.set(agentPod("agent-a", "uid-a2", "a"), appPod("web-1", "web", "a"))
	if _, err := a.Fetch(t.Context(), web); err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
		t.Errorf("an agent that is gone: %v", err)
	}
}

// handshake connects two workloads over a real socket.
func handshake(t *testing.T, client, to *svid.SVID) error {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			defer conn.Close()
			_, err = io.WriteString(tls.Server(conn, mtls.Server(to, nil)), "x")
		}
		served <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), mtls.Client(client, []identity.ID{to.ID}, nil))
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
		_ = conn.Close()
	}
	if other := <-served; err == nil {
		err = other
	}
	return err
}

// TestRootRotation rotates under agents that fetch over gRPC and workloads that
// shake hands all the while. The agents verify the controller by what is
// published, so that is rotated under them too.
func TestRootRotation(t *testing.T) {
	now := &clock{now: time.Now().Add(-3 * time.Hour)} // behind by hours at first, and never ahead
	ctl := startController(t, newCluster(t), func(cfg *kubeca.Config) {
		cfg.Authority = authority.Config{TrustDomain: td, MaxTTL: 24 * time.Hour, Settle: time.Hour, Overlap: time.Hour, Clock: now.Now}
	})
	eventually(t, "bundle published", func() bool { return ctl.cluster.roots() == 1 })
	ctl.pods.set(agentPod("agent-a", "uid-a", "a"), agentPod("agent-b", "uid-b", "b"), appPod("web-1", "web", "a"), appPod("api-1", "api", "b"))
	api := identity.MustParse("spiffe://td/ns/default/sa/api")
	agentA, agentB := ctl.agent("a"), ctl.agent("b")
	fetch := func(client *ca.Client, id identity.ID) *svid.SVID {
		t.Helper()
		ctl.mount()
		s, err := client.Fetch(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	both := func(when string, x, y *svid.SVID) {
		t.Helper()
		for _, pair := range [][2]*svid.SVID{{x, y}, {y, x}} {
			if err := handshake(t, pair[0], pair[1]); err != nil {
				t.Errorf("%s: %s to %s: %v", when, pair[0].ID, pair[1].ID, err)
			}
		}
	}
	apiOld := fetch(agentB, api)
	oldRoot := apiOld.Bundle.Certificates()[0]
	ctl.edit(kubeca.SecretName, func(s *corev1.Secret) { s.Annotations = map[string]string{kubeca.RotateAnnotation: "1"} })
	eventually(t, "both roots published", func() bool { return ctl.cluster.roots() == 2 })

	webNew := fetch(agentA, web)
	if len(webNew.Bundle.Certificates()) != 2 {
		t.Errorf("introduced: %d roots in an answer", len(webNew.Bundle.Certificates()))
	}
	both("introduced", webNew, apiOld)
	apiNew := fetch(agentB, api)
	both("both know both", webNew, apiNew)

	now.add(time.Hour)
	eventually(t, "switch", func() bool { return !ctl.ca.Status().Rotating })
	webBelow := fetch(agentA, web)
	if err := webBelow.Leaf().CheckSignatureFrom(oldRoot); err == nil {
		t.Error("still signed by the old root")
	}
	both("one below the new root", webBelow, apiNew)
	both("the other has not been renewed", webNew, apiNew)
	apiBelow := fetch(agentB, api)
	both("both below the new root", webBelow, apiBelow)

	now.add(time.Hour)
	eventually(t, "old root gone", func() bool { return ctl.cluster.roots() == 1 })
	webLast := fetch(agentA, web)
	if webLast.Bundle.Contains(oldRoot) {
		t.Error("the old root is still trusted")
	}
	both("after the overlap", webLast, apiBelow)
	if err := handshake(t, webLast, apiNew); err == nil {
		t.Error("what the old root signed is still accepted")
	}
}
