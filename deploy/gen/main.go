// Command gen writes what is generated below deploy: the custom resource definitions, extracted from the modules of go.mod
// (ignored by git), and the rendered manifests (committed). It is run by `go generate ./deploy` and `make generate`; with
// -crds it writes only the definitions.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	crdsOnly := flag.Bool("crds", false, "write only the custom resource definitions")
	dir := flag.String("dir", ".", "the directory deploy")
	flag.Parse()
	if err := run(*dir, *crdsOnly); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(dir string, crdsOnly bool) error {
	if err := writeCRDs(dir); err != nil {
		return err
	}
	if crdsOnly {
		return nil
	}
	return writeManifests(dir)
}
