// Command culvert is the user's terminal: certificate authorities for trying things out, and a demonstration of the
// whole data plane on one machine.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// Set by the linker; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

func main() {
	if err := root().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "culvert:", err)
		os.Exit(1)
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
