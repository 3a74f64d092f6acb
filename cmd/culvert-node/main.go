// Command culvert-node is the agent of a node: it captures the traffic of enrolled pods, carries it in HBONE under their
// identities, decides by policy, answers DNS and says what it does. See `culvert-node --help`.
package main

import (
	"context"
	"os"
	"runtime"

	"github.com/culvert-mesh/culvert/cmd/internal/launch"
)

// Set by the linker; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "proxy" { // ztunnel's only sub-command that runs anything
		args = args[1:]
	}
	os.Exit(launch.Program[*settings]{
		Name: "culvert-node", Version: version, Revision: revision, Read: readSettings, Build: build,
		Common: func(s *settings) launch.Common { return s.common },
	}.Start(args))
}

func build(s *settings, g launch.Given) (func(context.Context) error, error) {
	// A loop keeps its processor while it waits for a moment; goroutines need at least one of their own.
	if least := s.loops + 1; runtime.GOMAXPROCS(0) < least {
		runtime.GOMAXPROCS(least)
	}
	n, err := newNode(s, g.Settings, g.Levels, g.Logger, g.Signals)
	if err != nil {
		return nil, err
	}
	return n.run, nil
}
