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
		Version:       fmt.Sprintf("%s (%s)", version, revision),
	}
	cmd.SetVersionTemplate("culvert {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misused("%w (%s --help lists them)", err, cmd.CommandPath())
	})
	cmd.AddCommand(installCommand(), upgradeCommand(), uninstallCommand(), checkCommand(), plaintextCommand(), netpolCommand(), authzCommand())
	cmd.AddCommand(caCommand(), demoCommand(), versionCommand())
	return group(cmd)
}

// group makes a command that has others below it refuse a name that is none of them; alone it prints its help.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return misused("unknown command %q (%s --help lists them)", args[0], cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// noArguments refuses what is neither flag nor command.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return misused("unexpected argument %q: %s takes flags alone", args[0], cmd.CommandPath())
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version and revision",
		Args:  noArguments,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "culvert %s (%s)\n", version, revision)
		},
	}
}
