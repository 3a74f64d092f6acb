package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/topology"
)

// goalHostile is how much longer the slowest answers of a neighbour may take beside a hostile peer.
const goalHostile = 1.2

// hostilePart lets a peer attack the listener of a busy server, in one way after the other, and compares the slowest
// answers of connections beside it with those of the same connections alone just before. The attacker runs at the lowest
// priority: what counts is what the attack makes the agent do, not that the attacker needs a processor as well.
func hostilePart(ctx context.Context, s *scale) (err error) {
	m, err := startMany(ctx, s, 1, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// Each has an address of its own, for which nothing is held against it yet. They are there before the connections are: a
	// bridge may change its address with a new port.
	var attackers []*netlab.Pod
	for i := range attacks() {
		attacker, err := m.lab.AddPlainPod("node-a", "default", fmt.Sprintf("mallory-%d", i))
		if err != nil {
			return err
		}
		attackers = append(attackers, attacker)
	}
	target := netip.AddrPortFrom(m.servers[0].Addr(), 15008)
	for i, a := range attacks() {
		var alone, beside []float64
		for range s.rounds {
			before, err := m.slowest(ctx, s)
			if err != nil {
				return err
			}
			process, err := begin(attackers[i].Pod, exec.Command(self, "tool", "attack", "-ca-cert="+m.lab.CACert(), "-ca-key="+m.lab.CAKey(), a.name, target.String()))
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			during, err := m.slowest(ctx, s)
			ended := process.Usage() != nil
			_ = process.Signal(os.Kill) // it may have ended by itself
			<-process.Done()
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			if ended {
				s.broken("%s: the attack has ended too early", a.name)
			}
			alone, beside = append(alone, before...), append(beside, during...)
		}
		s.tell(a.name+"_alone", "ms", *median(alone))
		s.tell(a.name+"_p99", "ms", *median(beside))
		s.atMost(a.name+"_ratio", "of alone", *median(beside) / *median(alone), goalHostile)
	}
	return nil
}

// begin starts an attack and waits until it is under way: that a program is loaded is no part of it.
func begin(from *topology.Pod, cmd *exec.Cmd) (*topology.Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout = w
	process, err := from.Start(cmd)
	_ = w.Close() // the process has its own
	if err != nil {
		return nil, err
	}
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != nil {
		_ = process.Signal(os.Kill) // it may have ended by itself
		<-process.Done()
		return nil, fmt.Errorf("the attack did not begin: %w", err)
	}
	return process, nil
}

// parts is how many parts a duration is looked at in. One moment in which the machine does something else spoils the p99
// of its part and not the median of all parts.
const parts = 5

// slowest is the p99 of the neighbour's answers in milliseconds, one for each part of the duration.
func (m *manyPods) slowest(ctx context.Context, s *scale) ([]float64, error) {
	var all []float64
	for range parts {
		beats, err := pulses(ctx, m.clients[0].Pod, netip.AddrPortFrom(m.servers[0].Addr(), appHold.port), pulseConns, s.duration/parts)
		if err != nil {
			return nil, err
		}
		all = append(all, milliseconds(beats[len(beats)*99/100]))
	}
	return all, nil
}
