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
// answers of a connection beside it with those of the same connection alone, in turn. The attacker runs at the lowest
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
	var alone []float64 // the same connections each time, so all of them count
	beside := map[string][]float64{}
	for i, a := range attacks() {
		for range s.rounds {
			p, err := m.slowest(ctx, s)
			if err != nil {
				return err
			}
			alone = append(alone, milliseconds(p))
			process, err := begin(attackers[i].Pod, exec.Command(self, "tool", "attack", "-ca-cert="+m.lab.CACert(), "-ca-key="+m.lab.CAKey(), a.name, target.String()))
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			p, err = m.slowest(ctx, s)
			ended := process.Usage() != nil
			_ = process.Signal(os.Kill) // it may have ended by itself
			<-process.Done()
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			if ended {
				s.broken("%s: the attack has ended too early", a.name)
			}
			beside[a.name] = append(beside[a.name], milliseconds(p))
		}
	}
	s.tell("p99_alone", "ms", *median(alone))
	for _, a := range attacks() {
		p99 := *median(beside[a.name])
		s.tell(a.name+"_p99", "ms", p99)
		s.atMost(a.name+"_ratio", "of alone", p99 / *median(alone), goalHostile)
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

// slowest is the p99 of the neighbour's answers.
func (m *manyPods) slowest(ctx context.Context, s *scale) (time.Duration, error) {
	beats, err := pulses(ctx, m.clients[0].Pod, netip.AddrPortFrom(m.servers[0].Addr(), appHold.port), pulseConns, s.duration)
	if err != nil {
		return 0, err
	}
	return beats[len(beats)*99/100], nil
}
