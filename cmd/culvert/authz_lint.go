package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cmd/internal/authz"
)

func authzLintCommand() *cobra.Command {
	var output, only string
	cmd := &cobra.Command{
		Use:   "lint",
		Short: "Find what in policies is likely not what their author meant",
		Long: `Find what in AuthorizationPolicies and PeerAuthentications is likely not what their author meant: rules that others make
pointless, namespaces, service accounts and trust domains that do not exist, HTTP conditions that nothing enforces, policies
that select or match nothing or are for the whole mesh, ports of Services instead of pods, refusals that plaintext evades, and
policies that are for a dry run still.

With -f, objects are read from files instead of the cluster. Names are looked up among what was read: without any namespace
among the files, none is said to be unknown.

The exit status is 1 when there is an error or a warning, 0 when there are only notes or nothing, and 2 when there is no answer.`,
		Example: `  culvert authz lint
  culvert authz lint --only-namespace=shop
  culvert authz lint -f manifests/ -o json`,
		Args: noArguments,
	}
	f := addAuthzFlags(cmd, "files or directories to read objects from, instead of the cluster; - is the standard input")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&only, "only-namespace", "", "only policies of this namespace")
	return withTrouble(cmd, func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output, "text", "json"); err != nil {
			return err
		}
		w, err := f.load(cmd)
		if err != nil {
			return err
		}
		found := slices.DeleteFunc(w.Lint(), func(x authz.Finding) bool { return only != "" && x.Namespace != only })
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), found)
		} else {
			err = printLint(cmd.OutOrStdout(), found)
		}
		if err == nil && authz.Failed(found) {
			return withStatus{exitWrong, nil}
		}
		return err
	})
}

func printLint(out io.Writer, found []authz.Finding) error {
	var b strings.Builder
	for _, f := range found {
		rule := ""
		if f.Rule >= 0 {
			rule = fmt.Sprintf(" rule %d", f.Rule)
		}
		fmt.Fprintf(&b, "%s  %s %s/%s%s: %s [%s]\n    remedy: %s\n", f.Severity, f.Kind, f.Namespace, f.Name, rule, f.Text, f.Check, f.Remedy)
	}
	if len(found) == 0 {
		b.WriteString("nothing found\n")
	}
	return writeText(out, b.String())
}
