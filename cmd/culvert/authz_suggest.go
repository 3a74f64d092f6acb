package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/cmd/internal/authz"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/cmd/internal/objects"
)

type suggestFlags struct {
	*authzFlags
	prometheus string
	window     time.Duration
	only       string
	output     string
}

func authzSuggestCommand() *cobra.Command {
	f := suggestFlags{}
	cmd := &cobra.Command{
		Use:   "suggest",
		Short: "Make the smallest set of policies that keeps observed connections working",
		Long: `Make the smallest set of AuthorizationPolicies that keeps observed connections working: one ALLOW policy for each application
that was reached, with the identities that came and the ports that they came to. It prints YAML to apply.

Connections are those that the agents have seen since they started (it needs the right to forward ports of the agents' pods),
those that Prometheus has of the agents (--prometheus; metrics tell no ports, so those of the Service that was addressed are
taken), or those of a file that -o flows has written (-f). -f also takes files of objects, which are then read instead of the
cluster's. Let agents see a whole business cycle before you trust the answer.

Each connection is then evaluated against the suggestion together with the policies that there are, by the evaluator that
agents use. Those that would be refused are listed in comments: plaintext has no identity that a policy could name.

The exit status is 1 when some observed connection would be refused, or when connections may be missing, and 2 when there is
no answer.`,
		Example: `  culvert authz suggest --only-namespace=shop > policies.yaml
  culvert authz suggest --prometheus=http://localhost:9090 --window=168h
  culvert authz suggest -o flows > flows.json; culvert authz suggest -f flows.json -f manifests/`,
		Args: noArguments,
	}
	f.authzFlags = addAuthzFlags(cmd, "files of flows, or files and directories of objects; - is the standard input")
	flags := cmd.Flags()
	flags.StringVar(&f.prometheus, "prometheus", "", "address of a Prometheus that has the agents' metrics")
	flags.DurationVar(&f.window, "window", 7*24*time.Hour, "how far back Prometheus is asked")
	flags.StringVar(&f.only, "only-namespace", "", "only what goes to workloads of this namespace")
	flags.StringVarP(&f.output, "output", "o", "yaml", "yaml: the policies; json: what was found out about them too; flows: the connections that were seen")
	return withTrouble(cmd, func(cmd *cobra.Command, _ []string) error { return f.run(cmd) })
}

func (f *suggestFlags) run(cmd *cobra.Command) error {
	if err := checkOutput(f.output, "yaml", "json", "flows"); err != nil {
		return err
	}
	all, flows, err := f.read(cmd)
	if err != nil {
		return err
	}
	if f.only != "" {
		kept := []authz.Flow{}
		for _, one := range flows.Flows {
			if one.Destination.Namespace == f.only {
				kept = append(kept, one)
			}
		}
		flows.Flows = kept
	}
	out := cmd.OutOrStdout()
	if f.output == "flows" {
		return writeJSON(out, flows)
	}
	if all == nil {
		if all, err = f.cluster(cmd); err != nil {
			return err
		}
	}
	w, err := authz.New(all, f.workloadNamespace(), f.settings)
	if err != nil {
		return err
	}
	s, err := w.Suggest(flows.Flows)
	if err != nil {
		return err
	}
	if f.output == "json" {
		err = writeJSON(out, suggestionJSON(flows, s))
	} else {
		err = printSuggestion(out, flows, s)
	}
	if err == nil && (len(s.Refused) > 0 || len(flows.Missing) > 0 || flows.Dropped > 0) {
		return withStatus{exitWrong, nil}
	}
	return err
}

// read returns the flows, and the objects if files have some.
func (f *suggestFlags) read(cmd *cobra.Command) ([]*unstructured.Unstructured, *authz.Flows, error) {
	docs, err := objects.Documents(f.files, cmd.InOrStdin())
	if err != nil {
		return nil, nil, err
	}
	var all []*unstructured.Unstructured
	var seen []*authz.Flows
	for _, d := range docs {
		if d.IsObject() {
			all = append(all, &unstructured.Unstructured{Object: d.Object})
			continue
		}
		text, err := json.Marshal(d.Object)
		if err != nil {
			return nil, nil, err
		}
		more, err := authz.ParseFlows(text)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", d.File, err)
		}
		seen = append(seen, more)
	}
	var flows *authz.Flows
	switch {
	case len(seen) > 0 && f.prometheus != "":
		return nil, nil, errors.New("flows are given by -f and by --prometheus: want one of them")
	case len(seen) > 0:
		flows = authz.MergeFlows(seen...)
	case f.prometheus != "":
		flows, err = prometheusFlows(cmd.Context(), f.prometheus, f.window)
	default:
		flows, err = f.observed(cmd)
	}
	return all, flows, err
}

// observed asks the agents.
func (f *suggestFlags) observed(cmd *cobra.Command) (*authz.Flows, error) {
	a, err := f.kube.connect()
	if err != nil {
		return nil, err
	}
	var seen []*authz.Flows
	missing, err := inspect.AskAll(cmd.Context(), a, inspect.NewAgents(a), *f.mesh, "/flows", func(body []byte) error {
		one, err := authz.ParseFlows(body)
		if err == nil {
			seen = append(seen, one)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return authz.MergeFlows(append(seen, &authz.Flows{Missing: missing})...), nil
}

// suggestionReport is the suggestion as JSON, with the policies as objects.
type suggestionReport struct {
	Policies []map[string]any  `json:"policies"`
	Observed int               `json:"observed"`
	Kept     int               `json:"kept"`
	Refused  []authz.Uncovered `json:"refused"`
	Governed []string          `json:"governed"`
	Open     []authz.Uncovered `json:"open"`
	Since    time.Time         `json:"since,omitzero"`
	Dropped  uint64            `json:"dropped"`
	Missing  []string          `json:"missing"`
}

func suggestionJSON(flows *authz.Flows, s *authz.Suggestion) suggestionReport {
	r := suggestionReport{
		Policies: []map[string]any{}, Observed: len(flows.Flows), Kept: s.Kept, Refused: s.Refused, Governed: s.Governed, Open: s.Open,
		Since: flows.Since, Dropped: flows.Dropped, Missing: append([]string{}, flows.Missing...),
	}
	for _, p := range s.Policies {
		r.Policies = append(r.Policies, p.Object)
	}
	return r
}

// printSuggestion writes YAML, with what else there is to say in comments.
func printSuggestion(out io.Writer, flows *authz.Flows, s *authz.Suggestion) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %d kinds of connections were seen", len(flows.Flows))
	if !flows.Since.IsZero() {
		fmt.Fprintf(&b, " since %s", flows.Since.UTC().Format(time.RFC3339))
	}
	fmt.Fprintf(&b, "; with these %d policies %d of them work and %d would be refused.\n", len(s.Policies), s.Kept, len(s.Refused))
	for _, m := range flows.Missing {
		fmt.Fprintf(&b, "# not known: %s\n", inspect.Clean(m))
	}
	if flows.Dropped > 0 {
		fmt.Fprintf(&b, "# %d connections are not among them: an agent's table was full\n", flows.Dropped)
	}
	for _, u := range s.Refused {
		fmt.Fprintf(&b, "# REFUSED: %s: %s; %s\n", inspect.Clean(u.What), inspect.Clean(u.Why), inspect.Clean(u.Remedy))
	}
	for _, u := range s.Open {
		fmt.Fprintf(&b, "# no policy for %s: %s\n", inspect.Clean(u.What), inspect.Clean(u.Why))
	}
	for _, g := range s.Governed {
		fmt.Fprintf(&b, "# %s is governed by ALLOW policies that let all of them in already\n", inspect.Clean(g))
	}
	for _, p := range s.Policies {
		text, err := yaml.Marshal(p.Object)
		if err != nil {
			return fmt.Errorf("write policy %s: %w", p.GetName(), err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
