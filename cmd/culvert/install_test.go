package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/deploy"
)

// culvert runs the command without a cluster and returns what it prints.
func culvert(t *testing.T, args ...string) (string, error) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var out bytes.Buffer
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestDryRunPrintsManifests(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("trustDomain: from.file\nclusterID: from-file\ncni:\n  netDir: /from/file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := culvert(t, "install", "--dry-run", "--values-profile=k3s", "-f", file, "--set=clusterID=from-flag", "-n", "mesh")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"kind: Namespace\nmetadata:\n  name: mesh\n", "kind: DaemonSet", "kind: Deployment",
		`TRUST_DOMAIN: "from.file"`, `CLUSTER_ID: "from-flag"`, "path: /from/file", "path: /var/lib/rancher/k3s/data/cni",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q", want)
		}
	}
	if strings.Contains(out, "kind: CustomResourceDefinition") {
		t.Error("definitions are too long for kubectl apply")
	}
	// The namespace's Pod Security labels come first, or the agent's pods would be refused.
	if !strings.HasPrefix(out, "---\napiVersion: v1\nkind: Namespace\n") {
		t.Errorf("begins with %.60q", out)
	}
}

func TestCommandRefuses(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"no-cluster", []string{"install"}, "no kubeconfig"},
		{"no-cluster-upgrade", []string{"upgrade"}, "no kubeconfig"},
		{"no-cluster-uninstall", []string{"uninstall"}, "no kubeconfig"},
		{"no-cluster-plaintext", []string{"plaintext"}, "no kubeconfig"},
		{"absent-kubeconfig", []string{"install", "--kubeconfig=/does/not/exist"}, "/does/not/exist"},
		{"profile", []string{"install", "--dry-run", "--values-profile=kinder"}, "there are aks, eks"},
		{"typo", []string{"install", "--dry-run", "--set=agent.dnss=true"}, "dnss"},
		{"values-file", []string{"install", "--dry-run", "-f", "/does/not/exist"}, "/does/not/exist"},
		{"crds", []string{"install", "--crds=maybe"}, "want apply, skip or only"},
		{"namespace", []string{"install", "--dry-run", "-n", "a\nb"}, "--namespace"},
		{"argument", []string{"install", "now"}, `unexpected argument "now": culvert install takes flags alone`},
		{"command", []string{"instal"}, `unknown command "instal" (culvert --help lists them)`},
		{"command-below", []string{"netpol", "chek"}, `unknown command "chek" (culvert netpol --help lists them)`},
		{"flag", []string{"upgrade", "--forse"}, "unknown flag: --forse (culvert upgrade --help lists them)"},
		{"output", []string{"check", "--output=xml"}, "want table or json"},
		{"plaintext-output", []string{"plaintext", "--output=xml"}, "want table or json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := culvert(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestExitStatus: 2 says that there is no answer; 1 of check that something is wrong, of others that they failed.
func TestExitStatus(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want int
	}{
		{"command", []string{"instal"}, 2},
		{"argument", []string{"install", "now"}, 2},
		{"flag", []string{"check", "--forse"}, 2},
		{"output", []string{"check", "-o", "xml"}, 2},
		{"no-cluster", []string{"install"}, 1},
		{"no-cluster-plaintext", []string{"plaintext"}, 2},
		{"check", []string{"check", "--machine=false", "--kubeconfig=/does/not/exist"}, 1},
		{"help", []string{"netpol"}, 0},
		{"version", []string{"--version"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if out, err := culvert(t, tt.args...); status(err) != tt.want {
				t.Errorf("exit status %d, want %d: %v %s", status(err), tt.want, err, out)
			}
		})
	}
}

func TestDefinitionsOnly(t *testing.T) {
	out, err := culvert(t, "install", "--dry-run", "--crds=only")
	if errors.Is(err, deploy.ErrNoCRDs) {
		t.Skip("built without definitions: make generate")
	}
	if err != nil || !strings.Contains(out, "name: serviceentries.networking.istio.io") || strings.Contains(out, "kind: DaemonSet") {
		t.Errorf("got %v, %d bytes", err, len(out))
	}
}

func TestCheckWithoutCluster(t *testing.T) {
	out, err := culvert(t, "check", "--machine=false")
	if err != nil || !strings.Contains(out, "no kubeconfig") {
		t.Errorf("got %v: %s", err, out)
	}
}

func TestPrintFindings(t *testing.T) {
	found := []inspect.Finding{
		{Level: inspect.OK, About: "node n1", Text: "fine"}, {Level: inspect.OK, About: "cluster", Text: "there"}, {Level: inspect.Wrong, About: "node n2", Text: "bad"},
		{Level: inspect.Warning, About: "node n1", Text: "loose"}, {Level: inspect.Warning, About: "node n2", Text: "loose"},
		{Level: inspect.Wrong, About: "pods", Text: "6 are late", Names: []string{"a", "b", "c", "d", "e", "f"}},
	}
	tests := []struct {
		name, output string
		all          bool
		want, lacks  string
	}{
		{"short", "table", false, "1 more things are as they should be", "fine"},
		{"together", "table", false, "warning  2 nodes  loose: n1, n2\n", "node n1"},
		{"several", "table", false, "6 are late: a, b, c, d, e, … (--all)\n", "f"},
		{"all", "table", true, "fine", "more things"},
		{"all-alone", "table", true, "warning  node n2  loose\n", "2 nodes"},
		{"all-several", "table", true, "6 are late: a, b, c, d, e, f\n", "…"},
		{"json", "json", false, `"text": "fine"`, "more things"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := printFindings(&b, found, tt.output, tt.all); err != nil {
				t.Fatal(err)
			}
			if out := b.String(); !strings.Contains(out, tt.want) || strings.Contains(out, tt.lacks) || !strings.Contains(out, "bad") {
				t.Errorf("got %s", out)
			}
		})
	}
}

func TestPrintPlaintext(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	report := &inspect.Report{Since: now.Add(-time.Hour), Agents: 2, Overflow: 3, Missing: []string{"node n3: gone"}, Connections: []inspect.Plain{{
		Source: inspect.Party{Address: "10.0.0.9"}, Destination: inspect.Party{Namespace: "shop", Workload: "db"}, Port: 5432, Count: 7, LastSeen: now.Add(-90 * time.Second),
	}}}
	var b bytes.Buffer
	if err := printPlaintext(&b, report, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SOURCE", "10.0.0.9", "shop/db", "5432", "1m30s ago", "seen by 2 agents", "3 connections are not in the list", "not known: node n3: gone"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &b)
		}
	}
	for _, lacks := range []*inspect.Report{{Agents: 1, Missing: []string{"node n3: gone"}}, {Agents: 1, Overflow: 3}} {
		if status(incomplete(lacks)) != 1 {
			t.Errorf("%+v is taken for all that there is", lacks)
		}
	}
	if err := incomplete(&inspect.Report{Agents: 1}); err != nil {
		t.Errorf("a whole report: %v", err)
	}
	b.Reset()
	if err := printPlaintext(&b, &inspect.Report{Agents: 1}, now); err != nil || !strings.Contains(b.String(), "nobody speaks plaintext") {
		t.Errorf("got %v: %s", err, &b)
	}
}
