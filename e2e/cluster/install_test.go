package cluster

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

var (
	errIssued  = errors.New("a certificate was issued")
	errRoots   = errors.New("the bundle does not have both roots")
	errOldRoot = errors.New("the old root is in the bundle")
)

func count(text, part string) int { return strings.Count(text, part) }

// What `culvert install --dry-run` prints is what the API server accepts.
func TestDryRunIsAccepted(t *testing.T) {
	m := mesh(t) // it has made the namespace and the definitions
	cmd := exec.CommandContext(t.Context(), shared.program("culvert"), "install", "--dry-run", "--set=image.tag="+meshTag)
	cmd.Env = m.env.clientEnv()
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	out, err := kubectl(t.Context(), strings.NewReader(string(text)), "apply", "--dry-run=server", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	if !contains(out, "culvert-node") || !contains(out, "culvert-controller") {
		t.Errorf("the agent or the controller is missing:\n%s", out)
	}
}

// `culvert check` finds nothing wrong with what `culvert install` made, and names the network that it found.
func TestCheckIsContent(t *testing.T) {
	m := mesh(t)
	out, err := m.culvert(t.Context(), "check")
	t.Log(out)
	if err != nil {
		t.Errorf("%v", err)
	}
	if !contains(out, "culvert-cni") {
		t.Error("the nodes' network is not named")
	}
}
