package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/topology"
)

// goalHostile is how much longer the slowest answers of a neighbour may take beside a hostile peer.
const goalHostile = 1.2

// hostilePart lets a peer attack the listener of a busy server, in one way after the other, and compares the slowest
// answers of connections beside it with those of the same connections alone. The attacker runs at the lowest priority: what
// counts is what the attack makes the agent do, not that the attacker needs a processor as well.
func hostilePart(ctx context.Context, s *scale) (err error) {
	m, err := startMany(ctx, s, 1, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	app := netip.AddrPortFrom(m.servers[0].Addr(), appHold.port)
	// Each has an address of its own, for which nothing is held against it yet. They are there before the connections are: a
	// bridge may change its address with a new port.
	var attackers []*netlab.Pod
	for i := range attacks(app) {
		attacker, err := m.lab.AddPlainPod("node-a", "default", fmt.Sprintf("mallory-%d", i))
		if err != nil {
			return err
		}
		attackers = append(attackers, attacker)
	}
	for i, a := range attacks(app) {
		if len(s.attacks) > 0 && !slices.Contains(s.attacks, a.name) {
			continue
		}
		r, err := m.attacked(ctx, s, a, attackers[i], app)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		alone, beside := r.typical(r.alone), r.typical(r.beside)
		s.say("%-18s %d of the slowest answers in %d are beyond the p99", a.name, len(beside)/100, len(beside))
		s.tell(a.name+"_alone", "ms", milliseconds(p99(alone)))
		s.tell(a.name+"_p99", "ms", milliseconds(p99(beside)))
		ratio := float64(p99(beside)) / float64(p99(alone))
		if a.begin == openNothing {
			s.tell(a.name+"_ratio", "of alone", ratio) // what the machine does by itself
		} else {
			s.atMost(a.name+"_ratio", "of alone", ratio, goalHostile)
		}
	}
	return nil
}

// raid is an attack that was made several times, and the answers to a neighbour all the while.
type raid struct {
	length        time.Duration
	alone, beside []time.Time // when each stretch began, of length
	beats         []beat
}

const (
	// raidPart is how long the parts are that stretches are compared in.
	raidPart = 250 * time.Millisecond
	// raidPause is how long at least after an attack its neighbour is alone, and raidJitter how much longer at most, or before
	// the next one: what the machine does once a second is not to meet the same part of each stretch.
	raidPause  = 200 * time.Millisecond
	raidJitter = time.Second
)

// attacked makes an attack several times, with as much peace before each.
func (m *manyPods) attacked(ctx context.Context, s *scale, a attack, from *netlab.Pod, app netip.AddrPort) (*raid, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r := &raid{length: s.duration}
	once := func() error {
		pause := raidPause + rand.N(raidJitter)
		r.alone = append(r.alone, time.Now().Add(pause))
		if err := rest(ctx, pause+s.duration+rand.N(raidJitter)); err != nil {
			return err
		}
		process, err := begin(from.Pod, exec.Command(self, "tool", "attack", "-ca-cert="+m.lab.CACert(), "-ca-key="+m.lab.CAKey(),
			a.name, netip.AddrPortFrom(app.Addr(), 15008).String(), app.String()))
		if err != nil {
			return err
		}
		r.beside = append(r.beside, time.Now())
		err = rest(ctx, s.duration)
		if process.Usage() != nil {
			s.broken("%s: the attack has ended too early", a.name)
		}
		_ = process.Signal(os.Kill) // it may have ended by itself
		<-process.Done()
		return err
	}
	beats, err := pulses(ctx, m.clients[0].Pod, app, pulseConns, func() error {
		for range 2*s.rounds - 1 { // odd, so that there is a middle one
			if err := once(); err != nil {
				return err
			}
		}
		return nil
	})
	r.beats = withUnasked(beats)
	return r, err
}

// withUnasked adds the questions that were not asked because an answer was waited for: without them a second in which
// everything stands still would be a single slow answer.
func withUnasked(beats []beat) []beat {
	for _, b := range beats {
		for b.took > pulseInterval {
			b.asked, b.took = b.asked.Add(pulseInterval), b.took-pulseInterval
			beats = append(beats, b)
		}
	}
	return beats
}

// typical returns, in order of length, the answers of a typical one of the stretches: of each of its parts those of the
// stretch that is the middle one there, by its p99. Whatever the machine does now and then is left out with this; what an
// attack does is not, because it does it each time at about the same moment after it has begun.
func (r *raid) typical(began []time.Time) []time.Duration {
	var all []time.Duration
	for at := time.Duration(0); at < r.length; at += raidPart {
		var parts [][]time.Duration
		for _, from := range began {
			from = from.Add(at)
			parts = append(parts, lengths(slices.DeleteFunc(slices.Clone(r.beats), func(b beat) bool {
				return b.asked.Before(from) || !b.asked.Before(from.Add(raidPart))
			})))
		}
		slices.SortFunc(parts, func(a, b []time.Duration) int { return cmp.Compare(p99(a), p99(b)) })
		all = append(all, parts[len(parts)/2]...)
	}
	slices.Sort(all)
	return all
}

// p99 is that of durations in order of length.
func p99(sorted []time.Duration) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)*99/100]
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
