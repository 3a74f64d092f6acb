package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

// missing is the error for policies that somebody has to act on.
func missing(found []netpolcheck.Finding) error {
	cut, stale := 0, 0
	for i := range found {
		switch found[i].State {
		case netpolcheck.Cut:
			cut++
		case netpolcheck.Stale:
			stale++
		}
	}
	switch {
	case cut+stale == 0:
		return nil
	case stale == 0:
		return withStatus{exitWrong, fmt.Errorf("%d of %d policies cut the mesh", cut, len(found))}
	default:
		return withStatus{exitWrong, fmt.Errorf("of %d policies %d cut the mesh, and %d are stale companions", len(found), cut, stale)}
	}
}

// printNetpol writes for a person what was found of so many policies.
func printNetpol(out io.Writer, found []netpolcheck.Finding, policies int, dns bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, `What the mesh needs of a CNI that enforces policies:
  HBONE   TCP %d between pods of the mesh, whatever port is asked for; the ports themselves for everybody else
  probes  nothing: they come from the node's own address, from which Kubernetes always lets them through
`, netpolcheck.Port)
	if dns {
		b.WriteString("  DNS     nothing new: questions go from the pod to its nameserver, UDP and TCP 53, as before\n")
	} else {
		b.WriteString("  DNS     nothing new: it is not captured\n")
	}
	switch {
	case policies == 0:
		b.WriteString("\nThere are no policies.\n")
	case len(found) == 0:
		fmt.Fprintf(&b, "\nNothing is missing in %d policies.\n", policies)
	}
	for i := range found {
		printFinding(&b, &found[i])
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func printFinding(b *strings.Builder, f *netpolcheck.Finding) {
	words := map[netpolcheck.State]string{
		netpolcheck.Fine: "fine", netpolcheck.Outside: "not of the mesh", netpolcheck.Companion: "companion",
		netpolcheck.Cut: "CUTS HBONE", netpolcheck.Stale: "STALE COMPANION",
	}
	fmt.Fprintf(b, "\n%s: %s", inspect.Clean(f.About()), words[f.State])
	if f.Why != "" {
		fmt.Fprintf(b, " (%s)", inspect.Clean(f.Why))
	}
	b.WriteString("\n")
	for _, r := range f.Rules {
		fmt.Fprintf(b, "  %s rule %d: %s\n    %s\n", r.Direction, r.Number, inspect.Clean(r.What), inspect.Clean(r.Why))
	}
	for _, n := range f.Notes {
		fmt.Fprintf(b, "  note: %s\n", inspect.Clean(n))
	}
	if len(f.Patch) > 0 {
		label := "patch"
		if f.Namespace == "" {
			label = "proposal (it widens what the administrator decided)"
		}
		fmt.Fprintf(b, "  %s: %s\n", label, patchCommand(f))
	}
}

// patchCommand is what a person can paste.
func patchCommand(f *netpolcheck.Finding) string {
	patch, err := json.Marshal(f.Patch)
	if err != nil {
		return err.Error()
	}
	quote := func(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
	where := ""
	if f.Namespace != "" {
		where = " --namespace=" + quote(f.Namespace)
	}
	return fmt.Sprintf("kubectl patch %s %s%s --type=json --patch=%s", strings.ToLower(f.Kind), quote(f.Name), where, quote(ascii(patch)))
}

// ascii writes JSON without anything that a terminal could take for a command or show in another order.
func ascii(text []byte) string {
	var b strings.Builder
	for _, r := range string(text) {
		if r >= ' ' && r <= '~' {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}
