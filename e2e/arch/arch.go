// Package arch holds the import rules of the module and checks them against what the go command reports.
//
// [Edges] says which package of the module may import which other, [Fences] which packages may touch a heavy
// dependency, and [Rules] reads the source for the few habits that no compiler refuses (house rules). The package only
// looks; nothing in the product imports it. Its functions keep no state and may be called concurrently.
package arch

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Module is the path of the module whose imports are checked.
const Module = "github.com/culvert-mesh/culvert"

// Package is one package as `go list -json` reports it.
type Package struct {
	ImportPath   string
	Name         string
	Dir          string
	Standard     bool
	GoFiles      []string
	SFiles       []string // assembly
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string // imports of the production files
	TestImports  []string // imports of _test.go files of the same package
	XTestImports []string // imports of _test.go files of the package NAME_test
	Deps         []string // everything it needs in the end; filled only for packages under a [Closure]
}

// Rel is the package's path inside the module: "" for the root, "hbone/loop" for example.
func (p Package) Rel() string { return rel(p.ImportPath) }

func rel(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, Module), "/")
}

func inModule(importPath string) bool {
	return importPath == Module || strings.HasPrefix(importPath, Module+"/")
}

// Violation is one import that the tables refuse.
type Violation struct {
	Package string // importing package, inside the module
	Import  string // what it may not import, as written
	Reason  string // which rule refused it
}

func (v Violation) String() string {
	return fmt.Sprintf("%s imports %s: %s", v.Package, v.Import, v.Reason)
}

// Tables are the rules that [Tables.Check] applies.
type Tables struct {
	Edges    []Edge
	Fences   []Fence
	Closures []Closure
}

// Edge lets the packages matching From import the packages of the module matching one of To. Patterns are paths inside
// the module; "*" stands for one path element and a trailing "/**" for the package and everything below it.
// Of several edges matching a package all count.
type Edge struct {
	From string
	To   []string
}

// Fence keeps a dependency inside named packages: import paths with one of the Prefixes may be imported only by
// packages matching Allowed. Tests says whether _test.go files are held to it too.
type Fence struct {
	Name     string
	Prefixes []string // import path, or its beginning up to a slash
	Except   []string // prefixes inside the fenced ones that are free
	Allowed  []string
	Tests    bool
}

// Closure names dependencies that a package may not have even indirectly.
type Closure struct {
	Package  string
	Prefixes []string
}

// Check returns every import of the packages that the tables refuse, in the order of the packages.
func (t Tables) Check(pkgs []Package) []Violation {
	var found []Violation
	for _, p := range pkgs {
		found = append(found, t.checkEdges(p)...)
		found = append(found, t.checkFences(p)...)
		found = append(found, t.checkClosures(p)...)
	}
	return found
}

func (t Tables) checkEdges(p Package) []Violation {
	var found []Violation
	known := false
	var allowed []string
	for _, e := range t.Edges {
		if match(e.From, p.Rel()) {
			known = true
			allowed = append(allowed, e.To...)
		}
	}
	if !known {
		return []Violation{{p.Rel(), "(anything)", "the package is not in the import table"}}
	}
	for _, imp := range p.Imports {
		if !inModule(imp) {
			continue
		}
		target := rel(imp)
		switch {
		case isTestHelper(target) && !isTestHelper(p.Rel()) && !isTestCode(p.Rel()):
			found = append(found, Violation{p.Rel(), target, "test helpers are for _test.go files"})
		case isTestHelper(target), isOwnInternal(p.Rel(), target):
		case !matchAny(allowed, target):
			found = append(found, Violation{p.Rel(), target, "not in the import table"})
		}
	}
	// Tests may look sideways (that is how layers are tried together) but never up at a program.
	for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
		if target := rel(imp); inModule(imp) && match("cmd/**", target) && !match("cmd/**", p.Rel()) && !isTestCode(p.Rel()) {
			found = append(found, Violation{p.Rel(), target, "a test below cmd may not import a program"})
		}
	}
	return found
}

func (t Tables) checkFences(p Package) []Violation {
	var found []Violation
	for _, f := range t.Fences {
		if matchAny(f.Allowed, p.Rel()) {
			continue
		}
		imports := p.Imports
		if f.Tests {
			imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
		}
		for _, imp := range imports {
			if hasPrefix(imp, f.Prefixes) && !hasPrefix(imp, f.Except) {
				found = append(found, Violation{p.Rel(), imp, "outside the fence around " + f.Name})
			}
		}
	}
	return found
}

func (t Tables) checkClosures(p Package) []Violation {
	var found []Violation
	if match("cmd/*", p.Rel()) {
		for _, dep := range p.Deps {
			if inModule(dep) && isTestHelper(rel(dep)) {
				found = append(found, Violation{p.Rel(), rel(dep), "a program may not hold a test helper, not even indirectly"})
			}
		}
	}
	for _, c := range t.Closures {
		if c.Package != p.Rel() {
			continue
		}
		for _, dep := range p.Deps {
			if hasPrefix(dep, c.Prefixes) {
				found = append(found, Violation{p.Rel(), dep, "may not be needed, not even indirectly"})
			}
		}
	}
	return found
}

// isTestHelper reports whether the package is one that exists for tests: its name ends in "test".
func isTestHelper(rel string) bool { return strings.HasSuffix(path.Base(rel), "test") && rel != "" }

// isOwnInternal reports whether target is a part of the package that only has a directory of its own: x/internal/y
// seen from x. Below cmd the table decides.
func isOwnInternal(from, target string) bool {
	owner, _, ok := strings.Cut(target, "/internal/")
	return ok && from == owner
}

// isTestCode reports whether all files of the package are test code, whatever they are called.
func isTestCode(rel string) bool { return match("e2e/**", rel) }

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, name) })
}

func match(pattern, name string) bool {
	if base, ok := strings.CutSuffix(pattern, "/**"); ok {
		return name == base || strings.HasPrefix(name, base+"/")
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

func hasPrefix(importPath string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool {
		return importPath == p || strings.HasPrefix(importPath, strings.TrimSuffix(p, "/")+"/")
	})
}
