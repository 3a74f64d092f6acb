// Package launch is how Culvert's long-running programs start and end: version, settings, logger, signals, exit code. What
// a program does is its own; so are its settings, which package conf reads.
//
// A Program is run once, from main.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
)

// Exit codes.
const (
	Done    = 0
	Failed  = 1 // could not start, or ended by itself
	Misused = 2 // faulty settings
)

// Program is a program with settings of type S. All fields are required.
type Program[S any] struct {
	Name, Version, Revision string
	// Read reads the settings; conf.ErrHelp prints the usage of what it returns beside.
	Read func(args []string) (S, *conf.Set, error)
	// Common returns those settings that every program has.
	Common func(S) Common
	// Build puts the program together; its error is told to whoever started it. What it returns does the work, and ends by
	// itself only after a failure, which is logged. The first signal asks for the end, a second one for a quick one.
	Build func(S, Given) (run func(context.Context) error, err error)
}

// Given is what a program starts with.
type Given struct {
	Settings *conf.Set
	Levels   *admin.Levels
	Logger   *slog.Logger
	Signals  <-chan os.Signal
}

// Start runs the program to its end and returns the exit code.
func (p Program[S]) Start(args []string) int { return p.start(args, os.Stdout, os.Stderr) }

func (p Program[S]) start(args []string, out, errs io.Writer) int {
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		fmt.Fprintf(out, "%s %s (%s)\n", p.Name, p.Version, p.Revision)
		return Done
	}
	settings, set, err := p.Read(args)
	switch {
	case errors.Is(err, conf.ErrHelp):
		set.Usage(out)
		return Done
	case err != nil:
		fmt.Fprintf(errs, "%s: faulty settings:\n%v\n", p.Name, err)
		return Misused
	}
	common := p.Common(settings)
	levels, err := admin.NewLevels(common.LogLevel)
	if err != nil {
		fmt.Fprintf(errs, "%s: --log-level: %v\n", p.Name, err)
		return Misused
	}
	lines := newQueue(errs, common.LogFormat)
	defer lines.close()
	logger := slog.New(levels.Handler(handler(lines, common.LogFormat)))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	run, err := p.Build(settings, Given{set, levels, logger, signals})
	if err != nil {
		fmt.Fprintf(lines, "%s: %v\n", p.Name, err)
		return Failed
	}
	if err := run(context.Background()); err != nil {
		logger.Error("stopped", "error", err)
		return Failed
	}
	return Done
}

func handler(to io.Writer, format string) slog.Handler {
	options := &slog.HandlerOptions{Level: admin.LevelTrace} // the levels decide
	if format == "json" {
		return slog.NewJSONHandler(to, options)
	}
	return slog.NewTextHandler(to, options)
}
