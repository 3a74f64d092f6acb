package main

import (
	"context"
	"errors"
	"io"
	"slices"
)

// The two ways between pods of one node, whose agent both have.
const (
	nearTunnel = "tunnel" // as between nodes
	nearShort  = "short"  // from one application to the other, after the same checks
)

func nearArgs(name string) []string {
	if name == nearShort {
		return []string{"--same-node=short"}
	}
	return []string{"--same-node=encrypt"}
}

// sameNode compares the short way with the tunnel.
func (r *results) sameNode(ctx context.Context, o *options, out io.Writer) error {
	ms := sameNodeMeasurements()
	if !slices.Contains(o.systems, "culvert") || !slices.ContainsFunc(ms, func(m measurement) bool { return wants(o, m.rows) }) {
		return nil
	}
	benches, err := open(ctx, o, []string{nearTunnel, nearShort}, o.agentArgs, o.congestion, o.keep)
	if err != nil {
		return err
	}
	return errors.Join(r.rounds(ctx, o, ms, benches, out), closeAll(benches))
}

// sameNodeMeasurements take one figure each, under another name.
func sameNodeMeasurements() []measurement {
	var same []measurement
	for _, row := range []string{"throughput_1", "requests_32"} {
		all := measurements()
		m := all[slices.IndexFunc(all, func(m measurement) bool { return slices.Contains(m.rows, row) })]
		renamed := "same_node_" + row
		same = append(same, measurement{"one node: " + m.name, []string{renamed}, m.turns, func(ctx context.Context, b *bench) (figures, error) {
			got, err := m.take(ctx, b)
			return figures{renamed: got[row]}, err
		}})
	}
	return same
}
