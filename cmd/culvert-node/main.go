// Command culvert-node is the agent of a node: it captures the traffic of enrolled pods, carries it in HBONE under their
// identities, decides by policy, answers DNS and says what it does. See `culvert-node --help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
)

// Set by the linker; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

func main() {
	os.Exit(start(os.Args[1:]))
}

// start runs the program and returns its exit code.
func start(args []string) int {
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		fmt.Printf("culvert-node %s (%s)\n", version, revision)
		return 0
	}
	if len(args) > 0 && args[0] == "proxy" { // ztunnel's only sub-command that runs anything
		args = args[1:]
	}
	s, set, err := readSettings(args)
	switch {
	case errors.Is(err, conf.ErrHelp):
		set.Usage(os.Stdout)
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "culvert-node: faulty settings:\n%v\n", err)
		return 2
	}
	levels, err := admin.NewLevels(s.logLevel)
	if err != nil {
		fmt.Fprintf(os.Stderr, "culvert-node: --log-level: %v\n", err)
		return 2
	}
	logger := newLogger(s, levels)
	// A loop keeps its processor while it waits for a moment; goroutines need at least one of their own.
	if least := s.loops + 1; runtime.GOMAXPROCS(0) < least {
		runtime.GOMAXPROCS(least)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	n, err := newNode(s, set, levels, logger, signals)
	if err != nil {
		fmt.Fprintf(os.Stderr, "culvert-node: %v\n", err)
		return 1
	}
	if err := n.run(context.Background()); err != nil {
		logger.Error("stopped", "error", err)
		return 1
	}
	return 0
}

func newLogger(s *settings, levels *admin.Levels) *slog.Logger {
	options := &slog.HandlerOptions{Level: admin.LevelTrace}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if s.logFormat == "json" {
		h = slog.NewJSONHandler(os.Stderr, options)
	}
	return slog.New(levels.Handler(h))
}
