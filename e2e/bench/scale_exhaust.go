package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

const (
	// fewDescriptors is what an agent may have where it is to run out of them.
	fewDescriptors = 1000
	// crowdSize is how many connections are tried with them.
	crowdSize = 1500
	// worstBeat is the longest that the connection beside may wait for an answer meanwhile.
	worstBeat = 2 * time.Second
)

// exhaustPart takes the descriptors from one agent and then from the other.
func exhaustPart(ctx context.Context, s *scale) error {
	for i, name := range []string{"client", "server"} {
		if err := exhaust(ctx, s, i, "exhaust_"+name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func exhaust(ctx context.Context, s *scale, side int, name string) (err error) {
	l, err := newLab(name, s.congestion, s.keep)
	if err != nil {
		return err
	}
	c := &culvert{program: s.agent, args: s.agentArgs}
	c.limits[side] = fewDescriptors
	b := &bench{name: name, system: c, lab: l}
	defer func() { err = errors.Join(err, closeAll([]*bench{b})) }()
	if err := c.start(ctx, l); err != nil {
		return err
	}
	target := c.target(appHold)
	pair := func(int) (*topology.Pod, netip.AddrPort) { return l.client(), target }
	beside, err := startPulse(ctx, l.client(), target)
	if err != nil {
		return err
	}
	idle, err := descriptorsOf(c.processes[side])
	if err != nil {
		return err
	}

	var crowd crowd
	defer crowd.shrink(0)
	crowd.grow(ctx, crowdSize, pair)
	s.atLeast(name+"_held", "connections", float64(len(crowd.held)), fewDescriptors*8/10)
	s.tell(name+"_refused", "connections", float64(crowd.refused))
	s.atMost(name+"_hung", "connections", float64(crowd.hung), 0)
	lines, repeated, err := c.complaints(side)
	if err != nil {
		return err
	}
	s.atLeast(name+"_logged", "lines", float64(lines), 1)
	s.atMost(name+"_logged_again", "times", float64(repeated), 0)
	if n := crowd.dead(); n > 0 {
		s.broken("%s: %d of %d connections were lost", name, n, len(crowd.held))
	}

	// With room again everything works again.
	crowd.shrink(len(crowd.held) / 2)
	refused, hung := crowd.refused, crowd.hung
	began := time.Now()
	for { // what waited has to go first
		conn, err := enter(ctx, l.client(), target)
		if err == nil {
			conn.Close()
			break
		}
		if time.Since(began) > 10*time.Second || ctx.Err() != nil {
			return fmt.Errorf("no connection %v after half of them had ended: %w", time.Since(began), err)
		}
	}
	s.atMost(name+"_recovered", "s", time.Since(began).Seconds(), 2)
	crowd.grow(ctx, 200, pair)
	s.atMost(name+"_failed_after", "connections", float64(crowd.refused-refused+crowd.hung-hung), 0)

	beats, err := beside.end()
	if err != nil {
		s.broken("%s: %v", name, err)
	}
	s.atMost(name+"_beside_worst", "ms", milliseconds(slices.Max(append(lengths(beats), 0))), float64(worstBeat.Milliseconds()))
	crowd.shrink(0)
	return c.letGo(ctx, s, side, name, idle)
}

// letGo waits until an agent has about as many descriptors as it had: tunnels and sockets made ahead stay for a while.
func (c *culvert) letGo(ctx context.Context, s *scale, side int, name string, idle int) error {
	const ahead = 60 // a tunnel for each 200 streams, and 16 sockets of each family
	deadline := time.Now().Add(20 * time.Second)
	for {
		n, err := descriptorsOf(c.processes[side])
		if err != nil {
			return err
		}
		if n <= idle+ahead || time.Now().After(deadline) || ctx.Err() != nil {
			s.atMost(name+"_descriptors_left", "descriptors", float64(n-idle), ahead)
			return context.Cause(ctx)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// complaints reads what an agent's log says about descriptors, single connections aside: how many lines there are, and how
// often one of them comes again at most.
func (c *culvert) complaints(side int) (lines, repeated int, err error) {
	text, err := os.ReadFile(c.logFile(side))
	if err != nil {
		return 0, 0, err
	}
	times := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "scope=access") || !strings.Contains(line, "too many open files") && !strings.Contains(line, "no descriptors") {
			continue
		}
		_, message, _ := strings.Cut(line, "msg=")
		message, _, _ = strings.Cut(message, "scope=")
		times[message]++
		lines++
		repeated = max(repeated, times[message]-1)
	}
	return lines, repeated, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func descriptorsOf(p *topology.Process) (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	return len(entries), err
}
