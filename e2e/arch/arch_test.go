package arch_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/e2e/arch"
)

func loadModule(t *testing.T) (string, []arch.Package) {
	t.Helper()
	root, err := arch.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := arch.Load(t.Context(), root, "./...")
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) == 0 {
		t.Fatal("the go command reported no packages")
	}
	return root, pkgs
}

func TestImports(t *testing.T) {
	_, pkgs := loadModule(t)
	for _, v := range arch.Default().Check(pkgs) {
		t.Error(v)
	}
}

func TestHouseRules(t *testing.T) {
	root, pkgs := loadModule(t)
	found, err := arch.Rules(root, pkgs)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}

// TestRefusesForbiddenImport puts a real package with forbidden imports in the place of identity.
func TestRefusesForbiddenImport(t *testing.T) {
	pkgs, err := arch.Load(t.Context(), ".", "./testdata/refused")
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) != 1 {
		t.Fatalf("got %d packages, want the one in testdata", len(pkgs))
	}
	pkgs[0].ImportPath = arch.Module + "/identity"
	want := []arch.Violation{
		{Package: "identity", Import: "identity/identitytest", Reason: "test helpers are for _test.go files"},
		{Package: "identity", Import: "workload", Reason: "not in the import table"},
		{Package: "identity", Import: "google.golang.org/grpc", Reason: "outside the fence around gRPC and xDS"},
	}
	if diff := cmp.Diff(want, arch.Default().Check(pkgs)); diff != "" {
		t.Errorf("violations (-want +got):\n%s", diff)
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name string
		pkg  arch.Package
		want string // part of the only violation; empty for none
	}{
		{"floor", production("identity", "crypto/x509"), ""},
		{"engine_to_floor", production("hbone/tunnel", "hbone/loop", "identity"), ""},
		{"engine_to_workload", production("hbone/tunnel", "workload"), "hbone/tunnel imports workload: not in the import table"},
		{"proxy_joins", production("hbone/proxy", "workload/route", "identity/mtls", "hbone/pool"), ""},
		{"proxy_to_redirect", production("hbone/proxy", "redirect/origdst"), "not in the import table"},
		{"proxy_to_telemetry", production("hbone/proxy", "workload/telemetry"), "not in the import table"},
		{"redirect_knows_neither", production("redirect/podset", "workload"), "not in the import table"},
		{"own_internal", production("workload", "workload/internal/hamt"), ""},
		{"foreign_internal", production("workload/route", "workload/internal/hamt"), "not in the import table"},
		{"sans_io", production("hbone/h2", "net"), "sans-IO"},
		{"sans_io_netip", production("hbone/h2", "net/netip"), ""},
		{"raw_calls_in_engine", production("hbone/relay", "golang.org/x/sys/unix"), "raw system calls"},
		{"raw_calls_in_loop", production("hbone/loop", "golang.org/x/sys/unix"), ""},
		{"prefix_is_not_path", production("workload", "netlinkage.example/x"), ""},
		{"kubernetes_in_redirect", production("redirect/podset", "k8s.io/client-go/kubernetes"), "Kubernetes"},
		{"program", production("cmd/culvert-node", "hbone/proxy", "cmd/internal/run", "redirect/podset"), ""},
		{"helper_of_program", production("cmd/internal/run", "hbone/proxy"), "not in the import table"},
		{"helper_in_production", production("hbone/pool", "identity/identitytest"), "test helpers are for _test.go files"},
		{"test_library_in_production", production("hbone/pool", "testing"), "test libraries"},
		{"unknown_package", production("misc/things", "fmt"), "not in the import table"},
		{"helper_in_test", arch.Package{ImportPath: in("hbone/pool"), XTestImports: []string{in("identity/identitytest"), "testing"}}, ""},
		{"test_imports_program", arch.Package{ImportPath: in("hbone/pool"), XTestImports: []string{in("cmd/internal/run")}}, "may not import a program"},
		{"grpc_in_test", arch.Package{ImportPath: in("workload"), TestImports: []string{"google.golang.org/grpc"}}, "gRPC"},
		{"helper_in_program", arch.Package{ImportPath: in("cmd/culvert"), Deps: []string{in("redirect/netnstest")}}, "a program may not hold a test helper"},
		{"indirect", arch.Package{ImportPath: in("cmd/culvert-cni"), Deps: []string{"k8s.io/api/core/v1"}}, "not even indirectly"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := arch.Default().Check([]arch.Package{tt.pkg})
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("got %v, want none", got)
			case tt.want != "" && len(got) != 1:
				t.Errorf("got %v, want one", got)
			case tt.want != "" && !strings.Contains(got[0].String(), tt.want):
				t.Errorf("got %q, want it to say %q", got[0], tt.want)
			}
		})
	}
}

func TestRulesFindHabits(t *testing.T) {
	pkgs, err := arch.Load(t.Context(), ".", "./testdata/habits")
	if err != nil {
		t.Fatal(err)
	}
	pkgs[0].ImportPath = arch.Module + "/workload"
	found, err := arch.Rules(pkgs[0].Dir, pkgs)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		got = append(got, f.String())
	}
	want := []string{
		".:1: assembly needs a twin in Go and a test that compares them",
		".:1: the package has no doc comment",
		"habits.go:9: no init functions: what they do belongs in a constructor",
		"habits.go:10: a logger comes in Config",
		"habits.go:14: time.After cannot be stopped early; use time.NewTimer",
		"habits.go:18: net.ParseIP makes a net.IP; use netip.ParseAddr",
		"habits.go:20: panic outside of cmd and Must functions: return an error",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

func in(rel string) string { return arch.Module + "/" + rel }

// production is a package whose production files import the given paths; those without a dot in the first element
// that name a directory of the module are made absolute.
func production(rel string, imports ...string) arch.Package {
	p := arch.Package{ImportPath: in(rel)}
	for _, imp := range imports {
		switch first, _, _ := strings.Cut(imp, "/"); first {
		case "identity", "workload", "hbone", "redirect", "waypoint", "cmd", "e2e":
			imp = in(imp)
		}
		p.Imports = append(p.Imports, imp)
	}
	return p
}
