// Command culvert-cni is Culvert's CNI plugin. A container runtime calls it, chained last, with CNI_COMMAND and the other
// variables of the CNI specification and a configuration on its standard input. See package redirect/cni.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// Set by the linker; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

func main() {
	os.Exit(start(os.Args[1:]))
}

// start runs the program and returns its exit code. An error goes to the standard output, as CNI wants it.
func start(args []string) int {
	about := fmt.Sprintf("culvert-cni %s (%s)", version, revision)
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		fmt.Println(about)
		return 0
	}
	e := run(about)
	if e == nil {
		return 0
	}
	if err := e.Print(); err != nil {
		fmt.Fprintf(os.Stderr, "culvert-cni: write error %q: %v\n", e.Msg, err)
	}
	return 1
}

func run(about string) *types.Error {
	if command := os.Getenv("CNI_COMMAND"); command != "" && command != "VERSION" {
		if err := boundInput(); err != nil {
			return types.NewError(types.ErrIOFailure, fmt.Sprintf("culvert: read configuration: %v", err), "")
		}
	}
	return skel.PluginMainFuncsWithError(cni.Funcs(os.Stdout), cni.Versions(), about)
}

// boundInput reads the standard input, which package skel would read without a bound, and puts what it read in its place.
func boundInput() error {
	text, err := io.ReadAll(io.LimitReader(os.Stdin, cni.MaxInput+1))
	if err != nil {
		return err
	}
	if len(text) > cni.MaxInput {
		return fmt.Errorf("longer than %d bytes", cni.MaxInput)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	go func() { // ends with the last byte, or with the program
		_, _ = io.Copy(w, bytes.NewReader(text))
		_ = w.Close()
	}()
	os.Stdin = r
	return nil
}
