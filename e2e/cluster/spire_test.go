package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity/identitytest"
)

// Certificates come from SPIRE instead of the controller: pods speak under SPIRE's roots, and a pod that SPIRE does not know
// speaks not at all.
func TestSpireIdentity(t *testing.T) {
	nodes := needNodes(t)
	t.Log("SPIRE is a stand-in here that serves the real Delegated Identity API; a real SPIRE is not part of the test cluster")
	noMesh(t)
	// Its sockets are below the cluster's directory, which the nodes see under the same path.
	dir, err := os.MkdirTemp(filepath.Dir(nodes.Kubeconfig()), "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
	spire := identitytest.NewDelegatedIdentity(t)
	authority := identitytest.NewCA(t, "cluster.local")
	spire.SetRoots(authority.Bundle())

	socket := strings.TrimPrefix(spire.Address, "unix://")
	m := &shared.mesh
	t.Cleanup(func() {
		if err := m.remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := m.install(t.Context(), "--set=spire.adminSocket="+socket); err != nil {
		t.Fatal(err)
	}
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	var entries []identitytest.Entry
	grant := func(account string) {
		id := "spiffe://cluster.local/ns/" + ns.name + "/sa/" + account
		entries = append(entries, identitytest.Entry{Selectors: []string{"k8s:ns:" + ns.name, "k8s:sa:" + account}, SVID: authority.SVID(t, id)})
		spire.SetEntries(entries...)
	}
	grant("client")
	grant("server")
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	wantTLS(t, client, server)

	// Without a certificate a pod does not start, or is refused: both are right, and both end when SPIRE learns of it.
	unknown := ns.pod("unknown", onNode(n1))
	consistently(t, "a pod that SPIRE does not know", 5*time.Second, func() error {
		if p, err := unknown.get(); err != nil || !ready(p) {
			return err
		}
		if r, err := unknown.get1("http://" + server.ip + ":8080/"); err == nil && r.Error == "" {
			return fmt.Errorf("it is answered: %v", r.Body)
		}
		return nil
	})
	grant("unknown")
	unknown.ready().enrolled()
	wantTLS(t, unknown, server)
}
