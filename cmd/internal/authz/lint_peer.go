package authz

import (
	"slices"

	"github.com/culvert-mesh/culvert/workload/policy"
)

// peerAuthentications looks at what is wrong with them by themselves.
func (l *linter) peerAuthentications() {
	for _, p := range l.peers {
		add := func(s Severity, check, text, remedy string) {
			l.found = append(l.found, Finding{s, check, "PeerAuthentication", p.namespace, p.name, -1, text, remedy})
		}
		switch c := p.condition; {
		case c.Reason == "Invalid":
			add(Error, "invalid", "it cannot be understood: "+c.Message, "correct the value")
			continue
		case c.Type != "" && !c.Status:
			add(Warning, "overruled", "it is not in force: "+c.Message, "keep one of the two")
		case c.Message != "":
			add(Note, "root-namespace", c.Message, "move it to the namespace that it is for")
		}
		if len(p.selector) == 0 {
			if text, remedy := l.notRoot(p.namespace); text != "" {
				add(Warning, "not-root", text, remedy)
			}
			continue
		}
		here, selected := 0, 0
		for _, pod := range l.pods {
			if pod.namespace == p.namespace {
				here++
				if contains(pod.labels, p.selector) {
					selected++
				}
			}
		}
		if selected == 0 && here > 0 {
			add(Warning, "selects-nothing", "its selector "+labelsText(p.selector)+" selects no pod", "correct the selector")
		}
	}
}

// identifies reports whether the rule matches some sources by their identity.
func identifies(r rule) bool {
	ways, ok := alternatives(r)
	return ok && slices.ContainsFunc(ways, conjunction.identified)
}

// portFor returns a port that the rule may be about.
func (l *linter) portFor(r rule, p *pod) uint16 {
	for _, clause := range r {
		for i := range clause {
			if ports := clause[i].DestinationPorts; len(ports) > 0 {
				return ports[0]
			}
		}
	}
	known := l.portsOf(p, nil)
	if len(known) > 0 {
		return known[0]
	}
	return otherPort(known)
}

// disabled reports whether clients of the mesh send plaintext to the pod.
func (l *linter) disabled(p *pod) bool {
	return l.translation.PeerMode(p.namespace, p.labels).Mode == "DISABLE"
}

// takesPlaintext reports whether PeerAuthentication lets plaintext through to the port.
func (l *linter) takesPlaintext(p *pod, port uint16) bool {
	mode := l.translation.PeerMode(p.namespace, p.labels)
	if own, ok := mode.Ports[port]; ok {
		return own != "STRICT"
	}
	return mode.Mode != "STRICT"
}

// plaintext looks at rules about identities where connections without one are taken.
func (l *linter) plaintext(a *authorization, governed []*pod) {
	noted := false
	for i, r := range a.rules {
		if r.Never || !identifies(r.Clauses) {
			continue
		}
		for _, p := range governed {
			port := l.portFor(r.Clauses, p)
			if !p.in || !l.takesPlaintext(p, port) {
				continue
			}
			if a.policy.Action == policy.Allow {
				if l.disabled(p) {
					l.add(Warning, "identity-not-seen", a, i, "it names identities, and "+p.title()+" is announced without mTLS (PeerAuthentication DISABLE): whom it names is not recognised there", "another mode, or rules about addresses")
				} else if !noted {
					noted = true
					l.add(Note, "permissive", a, -1, "it names identities, and "+p.title()+" also takes plaintext, which has none and is refused by this policy", "with every client in the mesh, say so with a STRICT PeerAuthentication")
				}
				break
			}
			arrival := l.arrive(source{addr: unknownAddr()}, p, dialled{port: port})
			if l.policies.Evaluate(p.workload, arrival.connection).Allowed {
				l.add(Warning, "plaintext-evades", a, i, "it refuses by identity, and "+p.title()+" also takes plaintext: whoever is refused can come without an identity", "a STRICT PeerAuthentication closes that")
				break
			}
		}
	}
}
