package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
)

func plaintextCommand() *cobra.Command {
	var output, destination string
	cmd := &cobra.Command{
		Use:   "plaintext",
		Short: "List who still speaks plaintext to whom",
		Long: `List who still speaks plaintext to workloads that the mesh knows. Whoever speaks it to a pod of the mesh would be shut out by
a STRICT PeerAuthentication; what pods of the mesh send to workloads that are not in it is listed too, and STRICT does not touch
that. It asks every agent for what it has seen since it started, so let the agents run over a whole business cycle before you
trust an empty list. It needs the rights to list pods in Culvert's namespace and to forward their ports.

The exit status is 1 when the list may lack something, because an agent could not be asked or its table was full, and 2 when there is
no list.`,
		Example: `  culvert plaintext --to-namespace=shop`,
		Args:    noArguments,
	}
	kube := addKubeFlags(cmd)
	cmd.Flags().StringVar(&destination, "to-namespace", "", "only what goes to pods of this namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return withTrouble(cmd, func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output, "table", "json"); err != nil {
			return err
		}
		a, err := kube.connect()
		if err != nil {
			return err
		}
		report, err := inspect.Plaintext(cmd.Context(), a, inspect.NewAgents(a), kube.namespace())
		if err != nil {
			return err
		}
		if destination != "" {
			report.Connections = slices.DeleteFunc(report.Connections, func(p inspect.Plain) bool { return p.Destination.Namespace != destination })
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), report)
		} else {
			err = printPlaintext(cmd.OutOrStdout(), report, time.Now())
		}
		if err != nil {
			return err
		}
		return incomplete(report)
	})
}

// incomplete is the error for a report that may lack something.
func incomplete(r *inspect.Report) error {
	switch {
	case len(r.Missing) > 0:
		return withStatus{exitWrong, errors.New("the list may lack something: not every agent answered")}
	case r.Overflow > 0:
		return withStatus{exitWrong, errors.New("the list lacks something: an agent's table was full")}
	}
	return nil
}

func printPlaintext(out io.Writer, r *inspect.Report, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	if len(r.Connections) > 0 {
		fmt.Fprintln(w, "SOURCE\tSERVICE ACCOUNT\tADDRESS\tDESTINATION\tPORT\tCONNECTIONS\tLAST")
	}
	for _, p := range r.Connections {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s ago\n", p.Source, dash(p.Source.ServiceAccount), dash(p.Source.Address),
			p.Destination, p.Port, p.Count, now.Sub(p.LastSeen).Round(time.Second))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Connections) == 0 {
		fmt.Fprintln(out, "nobody speaks plaintext to the mesh, as far as the agents have seen")
	}
	if r.Agents > 0 {
		fmt.Fprintf(out, "seen by %d agents, all of them watching since %s\n", r.Agents, r.Since.Format(time.RFC3339))
	}
	if r.Overflow > 0 {
		fmt.Fprintf(out, "%d connections are not in the list: an agent's table was full\n", r.Overflow)
	}
	for _, m := range r.Missing {
		fmt.Fprintln(out, "not known:", m)
	}
	return nil
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
