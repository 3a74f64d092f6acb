// Command culvert-controller is the mesh's control plane: it makes workloads and policies from the objects of a cluster
// and publishes them to node agents (delta xDS), and it is the certificate authority (Istio's CA protocol), both on one
// port. Every replica serves; an elected one writes. See `culvert-controller --help`.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

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
		fmt.Printf("culvert-controller %s (%s)\n", version, revision)
		return 0
	}
	s, set, err := readSettings(args, os.LookupEnv)
	switch {
	case errors.Is(err, conf.ErrHelp):
		set.Usage(os.Stdout)
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "culvert-controller: faulty settings:\n%v\n", err)
		return 2
	}
	levels, err := admin.NewLevels(s.logLevel)
	if err != nil {
		fmt.Fprintf(os.Stderr, "culvert-controller: --log-level: %v\n", err)
		return 2
	}
	logger := newLogger(s, levels)
	klog.SetSlogLogger(logger.With(admin.ScopeKey, "kubernetes")) // what the client library has to say
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	reach, err := connect(s)
	if err != nil {
		fmt.Fprintf(os.Stderr, "culvert-controller: %v\n", err)
		return 1
	}
	c, err := newController(s, set, reach, levels, logger, signals)
	if err != nil {
		fmt.Fprintf(os.Stderr, "culvert-controller: %v\n", err)
		return 1
	}
	if err := c.run(context.Background()); err != nil {
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
