package main

import (
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// observer hands the proxy's flows to telemetry, which does not know the proxy.
type observer struct {
	telemetry *telemetry.Telemetry
	plaintext *plaintext
	passing   *passing
	flows     *flows
}

// Opened implements proxy.Observer.
func (o observer) Opened(f *proxy.Flow) {
	c := &telemetry.Connection{
		Direction:   telemetry.Direction(f.Direction),
		Source:      peerOf(&f.Source),
		Destination: peerOf(&f.Destination),
		HBONE:       f.Authority,
		Service:     f.Service,
		Start:       f.Start,
		Bytes:       f,
	}
	switch f.Protocol {
	case proxy.HBONE:
		c.Security = telemetry.MutualTLS
	case proxy.SameNode:
		c.Security = telemetry.SameNode
	}
	f.User = c
	o.telemetry.Opened(c)
	o.plaintext.saw(f)
	o.passing.opened(f)
}

// Noted implements proxy.Observer.
func (o observer) Noted(f *proxy.Flow) {
	c, ok := f.User.(*telemetry.Connection)
	if !ok {
		return
	}
	for _, d := range f.DryRun {
		effect := telemetry.WouldAudit
		switch d.Action {
		case policy.Allow:
			effect = telemetry.WouldAllow
		case policy.Deny:
			effect = telemetry.WouldDeny
		}
		c.Matches = append(c.Matches, telemetry.PolicyMatch{Policy: d.Policy, Effect: effect})
	}
	for _, key := range f.Audit {
		c.Matches = append(c.Matches, telemetry.PolicyMatch{Policy: key, Effect: telemetry.Audited})
	}
	o.telemetry.PolicyMatched(c)
}

// Closed implements proxy.Observer.
func (o observer) Closed(f *proxy.Flow) {
	c, opened := f.User.(*telemetry.Connection)
	if !opened {
		c = &telemetry.Connection{Direction: telemetry.Direction(f.Direction), Source: peerOf(&f.Source), Destination: peerOf(&f.Destination), HBONE: f.Authority, Start: f.Start}
	}
	c.Flag = telemetry.Flag(f.Flag)
	if f.Err != nil {
		c.Error = f.Err.Error()
	}
	o.passing.closed(f)
	o.flows.closed(f)
	if f.Flag == proxy.FlagCertRevoked {
		o.telemetry.CRLRejected(c.Direction)
	}
	if opened {
		o.telemetry.Closed(c)
	} else {
		o.telemetry.Refused(c)
	}
}

func peerOf(p *proxy.Peer) telemetry.Peer {
	return telemetry.Peer{Addr: p.Addr, Workload: p.Workload, Baggage: p.Baggage, ID: p.ID}
}
