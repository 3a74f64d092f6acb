package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/cmd/internal/authz"
	"github.com/culvert-mesh/culvert/identity"
)

type checkFlags struct {
	*authzFlags
	selector                     string
	from, principal, address, to string
	port                         uint16
	output                       string
}

func authzCheckCommand() *cobra.Command {
	f := checkFlags{}
	cmd := &cobra.Command{
		Use:   "check [WORKLOAD]",
		Short: "Say who may reach a workload and why, or what becomes of one connection",
		Long: `Say who may reach a workload, on which ports, and why: its mTLS mode, the policies that govern it, and what they add up to
for everybody who is known. Or, with --from, --from-principal or --from-ip, and --port: whether that connection is allowed,
and which policy and rule decides.

A workload is [namespace/]kind/name (pod/web-0, deployment/web, service/web) or labels ([namespace/]app=web). With -f, objects
are read from files instead of the cluster: namespaces, pods or what makes them, services, policies. The answer comes from the
code that controllers and agents decide with. NetworkPolicies are not considered.

The exit status is 0; of a connection 0 when it is allowed, from and to every pod that was named, and 1 when it is denied; and 2
when there is no answer.`,
		Example: `  culvert authz check -n shop deployment/cart
  culvert authz check -n shop --from=pod/web-0 --to=service/cart --port=80
  culvert authz check -f manifests/ -n shop --from-ip=10.1.2.3 --to=app=cart --port=8080`,
		Args: cobra.MaximumNArgs(1),
	}
	f.authzFlags = addAuthzFlags(cmd, "files or directories to read objects from, instead of the cluster; - is the standard input")
	flags := cmd.Flags()
	flags.StringVarP(&f.selector, "selector", "l", "", "labels of the workload, instead of its name")
	flags.StringVar(&f.from, "from", "", "workload that connects")
	flags.StringVar(&f.principal, "from-principal", "", "identity that connects: trust-domain/ns/NAMESPACE/sa/ACCOUNT")
	flags.StringVar(&f.address, "from-ip", "", "address that connects; in plaintext unless --from-principal is given")
	flags.StringVar(&f.to, "to", "", "workload that is connected to; default the argument")
	flags.Uint16Var(&f.port, "port", 0, "port that is connected to: the pod's, or the Service's if --to is one")
	flags.StringVarP(&f.output, "output", "o", "text", "text or json")
	return withTrouble(cmd, f.run)
}

func (f *checkFlags) run(cmd *cobra.Command, args []string) error {
	if err := checkOutput(f.output, "text", "json"); err != nil {
		return err
	}
	target := f.selector
	for _, text := range append(args, f.to) {
		if text != "" && target != "" {
			return errors.New("name the workload once: as the argument, with --selector or with --to")
		}
		target += text
	}
	if target == "" {
		return errors.New("name a workload, such as deployment/web")
	}
	to, err := f.ref(target)
	if err != nil {
		return err
	}
	q, asked, err := f.question(to)
	if err != nil {
		return err
	}
	w, err := f.load(cmd)
	if err != nil {
		return err
	}
	if asked {
		return f.decide(cmd.OutOrStdout(), w, q)
	}
	found, err := w.Reach(to)
	if err != nil {
		return err
	}
	if f.output == "json" {
		return writeJSON(cmd.OutOrStdout(), found)
	}
	return printReach(cmd.OutOrStdout(), found)
}

// question reads what is asked of one connection, if something is.
func (f *checkFlags) question(to authz.Ref) (authz.Question, bool, error) {
	q := authz.Question{To: to, Port: f.port}
	if f.from == "" && f.principal == "" && f.address == "" {
		if f.port != 0 {
			return q, false, errors.New("--port: say also who connects: --from, --from-principal or --from-ip")
		}
		return q, false, nil
	}
	if f.from != "" && (f.principal != "" || f.address != "") {
		return q, false, errors.New("--from cannot be combined with --from-principal or --from-ip")
	}
	if f.port == 0 {
		return q, false, errors.New("--port is missing")
	}
	var err error
	if f.from != "" {
		var from authz.Ref
		from, err = f.ref(f.from)
		q.From = &from
	}
	if f.principal != "" && err == nil {
		if q.Principal, err = identity.Parse("spiffe://" + strings.TrimPrefix(f.principal, "spiffe://")); err != nil {
			err = fmt.Errorf("--from-principal: %w", err)
		}
	}
	if f.address != "" && err == nil {
		if q.Address, err = netip.ParseAddr(f.address); err != nil {
			err = fmt.Errorf("--from-ip: %w", err)
		}
	}
	return q, true, err
}

func (f *checkFlags) decide(out io.Writer, w *authz.World, q authz.Question) error {
	verdicts, err := w.Decide(q)
	if err != nil {
		return err
	}
	if f.output == "json" {
		err = writeJSON(out, verdicts)
	} else {
		err = printVerdicts(out, verdicts)
	}
	if err == nil && slices.ContainsFunc(verdicts, func(v authz.Verdict) bool { return !v.Allowed }) {
		return withStatus{exitWrong, nil}
	}
	return err
}

func printVerdicts(to io.Writer, verdicts []authz.Verdict) error {
	out := new(strings.Builder)
	for _, v := range verdicts {
		word := "DENIED"
		if v.Allowed {
			word = "ALLOWED"
		}
		as := v.How
		if v.Identity != "" {
			as += " as " + v.Identity
		}
		fmt.Fprintf(out, "%s  %s -> %s port %d (%s)\n", word, v.From, v.To, v.Port, as)
		if v.Policy != "" {
			fmt.Fprintf(out, "  decided by %s\n", v.Policy)
		}
		if v.Rule >= 0 {
			fmt.Fprintf(out, "  rule %d: %s\n", v.Rule, v.RuleText)
		}
		fmt.Fprintf(out, "  because %s\n", v.Reason)
		indent(out, "  dry run: ", v.DryRun)
		indent(out, "  audited by: ", v.Audit)
		indent(out, "  note: ", v.Notes)
	}
	return writeText(to, out.String())
}

func indent(out io.Writer, label string, lines []string) {
	for _, l := range lines {
		fmt.Fprintf(out, "%s%s\n", label, l)
	}
}

func printReach(to io.Writer, found []authz.Reach) error {
	out := new(strings.Builder)
	for i, r := range found {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s  %s\n", r.Workload, podsText(r.Pods))
		fmt.Fprintf(out, "  identity  %s\n", r.Identity)
		fmt.Fprintf(out, "  mTLS      %s\n", modeText(&r.MTLS))
		for _, port := range slices.Sorted(maps.Keys(r.MTLS.Ports)) {
			fmt.Fprintf(out, "            port %d: %s (PeerAuthentication %s)\n", port, r.MTLS.Ports[port], r.MTLS.PortsFrom)
		}
		if r.MTLS.Fault != "" {
			fmt.Fprintf(out, "            cannot be understood, so it counts as STRICT: %s\n", r.MTLS.Fault)
		}
		fmt.Fprintf(out, "  reached by %s\n", r.Summary.Text)
		indent(out, "    + ", r.Summary.Allowed)
		indent(out, "    - ", r.Summary.Refused)
		printGoverning(out, r.Policies)
		if err := printSources(out, r.Sources); err != nil {
			return err
		}
		indent(out, "  note: ", r.Notes)
	}
	return writeText(to, out.String())
}

func podsText(pods []string) string {
	switch {
	case len(pods) == 0:
		return "(not running)"
	case len(pods) == 1:
		return "(pod " + pods[0] + ")"
	default:
		return fmt.Sprintf("(%d pods)", len(pods))
	}
}

func modeText(m *authz.Mode) string {
	if m.From == "" {
		return m.Mode + " (no PeerAuthentication says otherwise)"
	}
	return m.Mode + " (PeerAuthentication " + m.From + ")"
}

func printGoverning(out io.Writer, policies []authz.Governing) {
	if len(policies) == 0 {
		fmt.Fprintln(out, "  policies  none")
		return
	}
	fmt.Fprintln(out, "  policies")
	for _, p := range policies {
		action := p.Action
		if p.DryRun {
			action += " (dry run)"
		}
		fmt.Fprintf(out, "    %s  %s  for %s  %s\n", p.Policy, action, p.Scope, p.Status)
		for _, r := range p.Rules {
			fmt.Fprintf(out, "      rule %d: %s\n", r.Index, r.Text)
			if r.Note != "" {
				fmt.Fprintf(out, "        %s\n", r.Note)
			}
		}
		if len(p.Rules) == 0 {
			fmt.Fprintln(out, "      no rules: matches nothing")
		}
	}
}

func printSources(out io.Writer, sources []authz.Source) error {
	if len(sources) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "  FROM\tBY\tPORTS\tWORKLOADS")
	for _, s := range sources {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", s.Source, s.How, s.Ports, dash(strings.Join(s.Workloads, ", ")))
	}
	return w.Flush()
}
