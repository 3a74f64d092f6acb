// Command culvert is the user's terminal: it installs Culvert into a cluster, checks what it found there, shows who still
// speaks plaintext, judges policies (who may talk to whom, and what a CNI would cut), makes certificate authorities for
// trying things out, and demonstrates the whole data plane on one machine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Set by the linker; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

func main() {
	// The first signal ends what runs in order (an installation is rolled back), the second at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := root().ExecuteContext(ctx); err != nil {
		if text := err.Error(); text != "" {
			fmt.Fprintln(os.Stderr, "culvert:", text)
		}
		os.Exit(exitStatus(err))
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "culvert",
		Short:         "A service mesh without sidecars",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	cmd.AddCommand(installCommand(), upgradeCommand(), uninstallCommand(), checkCommand(), plaintextCommand(), netpolCommand(), authzCommand())
	cmd.AddCommand(caCommand(), demoCommand(), versionCommand())
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version and revision",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "culvert %s (%s)\n", version, revision)
		},
	}
}
