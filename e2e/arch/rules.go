package arch

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
)

// MaxLines is the most lines that a hand-written production file may have.
const MaxLines = 600

// Finding is one place that breaks a house rule.
type Finding struct {
	File string // inside the module
	Line int
	Rule string
}

func (f Finding) String() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Rule) }

// call is a use of a package-level name that the house does not allow in production files.
type call struct {
	pkg, name string // import path and name; an empty name stands for every exported function of the list below
	reason    string
	allowed   []string // packages that may
}

func forbiddenCalls() []call {
	programs := []string{"cmd/*", "deploy/gen", "deploy/image", "deploy/samples/*", "e2e/**"}
	return []call{
		{pkg: "time", name: "After", reason: "time.After cannot be stopped early; use time.NewTimer"},
		{pkg: "time", name: "Tick", reason: "time.Tick cannot be stopped; use time.NewTicker"},
		{pkg: "net", name: "ParseIP", reason: "net.ParseIP makes a net.IP; use netip.ParseAddr"},
		{pkg: "net", name: "ParseCIDR", reason: "net.ParseCIDR makes a net.IP; use netip.ParsePrefix"},
		{pkg: "os", name: "Exit", reason: "only a program's main may exit", allowed: programs},
		{pkg: "os", name: "Getenv", reason: "the environment is read in cmd alone", allowed: append(programs, "cmd/internal/conf", "redirect/netnstest", "*/*test")},
		{pkg: "log", name: "Fatal", reason: "only a program's main may exit", allowed: programs},
		{pkg: "log", name: "Fatalf", reason: "only a program's main may exit", allowed: programs},
		{pkg: "log", name: "Printf", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log", name: "Println", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log/slog", name: "Default", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log/slog", name: "Debug", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log/slog", name: "Info", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log/slog", name: "Warn", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log/slog", name: "Error", reason: "a logger comes in Config", allowed: programs},
		{pkg: "log/slog", name: "SetDefault", reason: "process-wide state; a logger comes in Config", allowed: programs},
		{pkg: "fmt", name: "Println", reason: "only a program prints", allowed: programs},
		{pkg: "fmt", name: "Printf", reason: "only a program prints", allowed: programs},
	}
}

// Rules reads the production files of the packages below root and returns what breaks a house rule, ordered by place.
func Rules(root string, pkgs []Package) ([]Finding, error) {
	var found []Finding
	for _, p := range pkgs {
		fset := token.NewFileSet()
		documented := false
		for _, name := range p.GoFiles {
			file := filepath.Join(p.Dir, name)
			tree, err := parser.ParseFile(fset, file, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, fmt.Errorf("parse %s: %w", file, err)
			}
			documented = documented || tree.Doc != nil
			if ast.IsGenerated(tree) {
				continue
			}
			c := &checker{pkg: p.Rel(), fset: fset, imports: importNames(tree)}
			c.file(tree)
			for _, f := range c.found {
				f.File = relFile(root, file)
				found = append(found, f)
			}
		}
		if len(p.SFiles) > 0 && !matchAny(Assembly(), p.Rel()) {
			found = append(found, Finding{File: relFile(root, p.Dir), Line: 1, Rule: "assembly needs a twin in Go and a test that compares them"})
		}
		if !documented && len(p.GoFiles) > 0 {
			found = append(found, Finding{File: relFile(root, p.Dir), Line: 1, Rule: "the package has no doc comment"})
		}
	}
	slices.SortFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Rule, b.Rule))
	})
	return found, nil
}

func relFile(root, file string) string {
	if r, err := filepath.Rel(root, file); err == nil {
		return r
	}
	return file
}

func importNames(tree *ast.File) map[string]string {
	names := make(map[string]string)
	for _, spec := range tree.Imports {
		target := strings.Trim(spec.Path.Value, `"`)
		name := target[strings.LastIndex(target, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = target
	}
	return names
}

type checker struct {
	pkg     string
	fset    *token.FileSet
	imports map[string]string // local name to import path
	found   []Finding
}

func (c *checker) add(pos token.Pos, rule string) {
	c.found = append(c.found, Finding{Line: c.fset.Position(pos).Line, Rule: rule})
}

func (c *checker) file(tree *ast.File) {
	if lines := c.fset.File(tree.Pos()).LineCount(); lines > MaxLines {
		c.add(tree.Pos(), fmt.Sprintf("the file has %d lines, more than %d", lines, MaxLines))
	}
	for _, decl := range tree.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			ast.Inspect(decl, func(n ast.Node) bool { return c.node(n, "") })
			continue
		}
		if fn.Recv == nil && fn.Name.Name == "init" {
			c.add(fn.Pos(), "no init functions: what they do belongs in a constructor")
		}
		ast.Inspect(fn, func(n ast.Node) bool { return c.node(n, fn.Name.Name) })
	}
}

// node looks at one syntax node inside the named function ("" outside of functions).
func (c *checker) node(n ast.Node, fn string) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" && !c.mayPanic(fn) {
			c.add(n.Pos(), "panic outside of cmd and Must functions: return an error")
		}
	case *ast.SelectorExpr:
		id, ok := n.X.(*ast.Ident)
		if !ok {
			return true
		}
		for _, f := range forbiddenCalls() {
			if c.imports[id.Name] == f.pkg && n.Sel.Name == f.name && !matchAny(f.allowed, c.pkg) {
				c.add(n.Pos(), f.reason)
			}
		}
	}
	return true
}

func (c *checker) mayPanic(fn string) bool {
	return match("cmd/*", c.pkg) || isTestCode(c.pkg) || isTestHelper(c.pkg) || strings.HasPrefix(fn, "Must") || strings.HasPrefix(fn, "must")
}
