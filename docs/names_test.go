package docs_test

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestMetricsAndAnnotationsAreDocumented: what the code calls so is in operate.md, and nothing else is.
func TestMetricsAndAnnotationsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("operate.md")
	if err != nil {
		t.Fatal(err)
	}
	metric := regexp.MustCompile(`^(culvert|istio|pilot|citadel|workload_manager)_[a-z_]+$`)
	annotation := regexp.MustCompile(`^((ambient|traffic\.sidecar)\.istio\.io/[a-zA-Z-]+|culvert\.io/(allow|outbound|rotate)[a-z-]+)$`)
	// Names of other things: a table of a probe, a policy, and keys that only the controller writes or reads on waypoints.
	other := []string{"culvert_probe", "istio_converted_static_strict", "ambient.istio.io/redirection", "ambient.istio.io/waypoint-inbound-binding"}
	known := map[string]bool{}
	for _, root := range []string{"../cmd", "../workload", "../redirect"} {
		for _, name := range literals(t, root) {
			if metric.MatchString(name) || annotation.MatchString(name) {
				known[name] = true
			}
		}
	}
	for _, name := range other {
		delete(known, name)
	}
	written := map[string]bool{}
	for _, word := range regexp.MustCompile("[a-zA-Z0-9_./-]+").FindAllString(string(text), -1) {
		word = strings.TrimRight(word, ".")
		if (metric.MatchString(word) || annotation.MatchString(word)) && !slices.Contains(other, word) {
			written[word] = true
		}
	}
	for name := range known {
		if !written[name] {
			t.Errorf("operate.md does not tell of %s", name)
		}
	}
	for name := range written {
		if !known[name] {
			t.Errorf("operate.md tells of %s, which is not in the code", name)
		}
	}
}

// TestReasonsAreDocumented: each text that the error of a connection can have, and each kind of failure, is in operate.md.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("operate.md")
	if err != nil {
		t.Fatal(err)
	}
	// Texts of what no line of the access log has: of decisions that allow, of programming errors, and of shutting down.
	other := []string{
		"no network policy governs it", "allowed by a rule", "a pod may reach itself", "a pod's own node may reach it, and it its node",
		"no such direction", "proxy is stopped",
		"no certificate", "not TLS", "refused by peer", "timeout", "handshake failed", "revoked", // words of package mtls for tests
	}
	for _, dir := range []string{"../hbone/proxy", "../hbone/relay", "../hbone/tunnel", "../identity/mtls", "../workload/route", "../workload/policy", "../workload/netpol"} {
		found := reasons(t, dir)
		if len(found) == 0 {
			t.Errorf("%s has no reasons", dir)
		}
		for _, reason := range found {
			if !slices.Contains(other, reason) && !strings.Contains(string(text), strings.TrimRight(reason, ": ")) {
				t.Errorf("operate.md does not tell of %q of %s", reason, dir)
			}
		}
	}
	flag := regexp.MustCompile(`^[A-Z]+(_[A-Z0-9]+)*$`)
	for _, name := range literals(t, "../hbone/proxy/errors.go") {
		if flag.MatchString(name) && !strings.Contains(string(text), "| **`"+name+"`** |") {
			t.Errorf("operate.md does not tell of the flag %s", name)
		}
	}
}

// reasons returns the texts of a package's constants and variables that are named as errors or reasons.
func reasons(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`^([eE]rr|[rR]eason)[A-Z]`)
	var found []string
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			general, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range general.Specs {
				value, ok := spec.(*ast.ValueSpec)
				if !ok || !named.MatchString(value.Names[0].Name) {
					continue
				}
				ast.Inspect(value, func(n ast.Node) bool {
					if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						if text, err := strconv.Unquote(lit.Value); err == nil {
							found = append(found, text)
						}
					}
					return true
				})
			}
		}
	}
	return found
}

// TestScopesAndEventsAreDocumented: each scope of a log and each reason of an event is in operate.md.
func TestScopesAndEventsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("operate.md")
	if err != nil {
		t.Fatal(err)
	}
	event := regexp.MustCompile(`^Culvert[A-Z][A-Za-z]+$`)
	for _, name := range literals(t, "../cmd/internal/kubenode") {
		if event.MatchString(name) && !strings.Contains(string(text), "| `"+name+"` |") {
			t.Errorf("operate.md does not tell of the event %s", name)
		}
	}
	scope := regexp.MustCompile(`(?:\bscope\(|With\((?:"scope"|admin\.ScopeKey), )"([a-z/]+)"`)
	for _, program := range []string{"../cmd/culvert-node", "../cmd/culvert-controller"} {
		paths, err := filepath.Glob(program + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, path := range paths {
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range scope.FindAllStringSubmatch(string(source), -1) {
				if found++; !strings.Contains(string(text), "`"+m[1]+"`") {
					t.Errorf("operate.md does not tell of the scope %s of %s", m[1], program)
				}
			}
		}
		if found == 0 {
			t.Errorf("%s has no scopes", program)
		}
	}
}

// literals returns the texts in quotes of the programs' files below a directory.
func literals(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		var s scanner.Scanner
		s.Init(files.AddFile(path, files.Base(), len(source)), source, nil, 0)
		for {
			_, tok, lit := s.Scan()
			if tok == token.EOF {
				return nil
			}
			if tok == token.STRING {
				if text, err := strconv.Unquote(lit); err == nil {
					found = append(found, text)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
