package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// chaos is everything that disturbs the load. Each disturbance has a goroutine and a sequence of random numbers of its
// own, so that a seed gives the same choices again; the moments are the machine's.
type chaos struct {
	mesh   *mesh
	fleet  *fleet
	ledger *ledger
	counts counts
}

// counts are what has been done to the mesh.
type counts struct {
	kills, podFlaps, wireFlaps, rotations, policies, endpoints, guests atomic.Int64
}

// flapLimit is the longest that a cable is out. TCP and the tunnels' pings bear far more.
const flapLimit = 1500 * time.Millisecond

// run disturbs until ctx ends and returns when everything is as it was at the start. life bounds what has begun.
func (c *chaos) run(ctx, life context.Context, seed uint64) error {
	disturbances := []struct {
		name  string
		every time.Duration // about
		do    func(ctx context.Context, rng *rand.Rand) error
	}{
		{"kill an application", 4 * time.Second, c.kill},
		{"flap a pod's link", 4 * time.Second, c.flapPod},
		{"flap a node's wire", 9 * time.Second, c.flapWire},
		{"change policy", 2 * time.Second, c.changePolicy},
		{"change endpoints", 3 * time.Second, c.changeEndpoints},
		{"let a guest go and come back", 5 * time.Second, c.changeGuests},
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i, d := range disturbances {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for {
				sleep(ctx, d.every/2+time.Duration(rng.Int64N(int64(d.every))))
				if ctx.Err() != nil {
					return
				}
				if err := d.do(life, rng); err != nil {
					cancel(fmt.Errorf("%s: %w", d.name, err))
					return
				}
			}
		})
	}
	for _, a := range c.mesh.agents {
		wg.Go(func() {
			if err := c.watchRotations(ctx, a); err != nil {
				cancel(fmt.Errorf("watch certificates: %w", err))
			}
		})
	}
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return c.restore()
}

func (c *chaos) kill(ctx context.Context, rng *rand.Rand) error {
	pod := rng.IntN(len(c.mesh.pods))
	err := c.fleet.kill(ctx, pod, time.Duration(rng.Int64N(int64(time.Second))))
	c.counts.kills.Add(1)
	return err
}

func flapTime(rng *rand.Rand) time.Duration {
	return 20*time.Millisecond + time.Duration(rng.Int64N(int64(flapLimit)))
}

func (c *chaos) flapPod(ctx context.Context, rng *rand.Rand) error {
	p := c.mesh.pods[rng.IntN(len(c.mesh.pods))]
	c.counts.podFlaps.Add(1)
	return flap(ctx, rng, p.SetLink)
}

func (c *chaos) flapWire(ctx context.Context, rng *rand.Rand) error {
	n := c.mesh.lab.Topology().Nodes()[rng.IntN(nodes)]
	c.counts.wireFlaps.Add(1)
	return flap(ctx, rng, n.SetWire)
}

func flap(ctx context.Context, rng *rand.Rand, set func(up bool) error) error {
	if err := set(false); err != nil {
		return err
	}
	sleep(ctx, flapTime(rng))
	return set(true)
}

// changePolicy refuses the visitor or lets it in again, sees that this has happened, and changes a policy that concerns
// nobody.
func (c *chaos) changePolicy(ctx context.Context, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it takes no effect"))
	defer cancel()
	pod := rng.IntN(c.mesh.loads)
	no := deny("no-visitor", "visitor")
	for _, refuse := range []bool{true, false} {
		if err := c.mesh.setPolicy(deny("no-nobody", fmt.Sprintf("nobody-%d", rng.IntN(1000))), refuse); err != nil {
			return err
		}
		var held *visit
		if refuse {
			var err error
			if held, err = c.visit(ctx, pod); err != nil {
				held = nil // its server was just killed, or its link is down
			}
		}
		if err := c.mesh.setPolicy(no, refuse); err != nil {
			return err
		}
		if err := until(ctx, func() bool { return c.admitted(ctx, pod) != refuse }); err != nil {
			return fmt.Errorf("visitor to %s refused=%t: %w", c.mesh.pods[pod].Name(), refuse, err)
		}
		if held != nil {
			if err := held.cut(); err != nil {
				return err
			}
		}
		c.counts.policies.Add(2)
	}
	return nil
}

// visit is a connection of the visitor, which is part of no application.
type visit struct{ conn net.Conn }

// visit connects and waits for the server's greeting.
func (c *chaos) visit(ctx context.Context, pod int) (*visit, error) {
	addr := netip.AddrPortFrom(c.mesh.pods[pod].Addr(), appPort)
	conn, err := c.mesh.visitor.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(flapLimit + 2*time.Second))
	b := make([]byte, greetingSize)
	if _, err := conn.Read(b); err != nil {
		conn.Close()
		return nil, err
	}
	return &visit{conn}, nil
}

// admitted reports whether the visitor gets through.
func (c *chaos) admitted(ctx context.Context, pod int) bool {
	v, err := c.visit(ctx, pod)
	if err != nil {
		return false
	}
	v.conn.Close()
	return true
}

// cut wants the connection to have been ended.
func (v *visit) cut() error {
	defer v.conn.Close()
	_ = v.conn.SetDeadline(time.Now().Add(patience))
	var b [1]byte
	_, err := v.conn.Read(b[:])
	if err != nil && strings.Contains(err.Error(), "i/o timeout") {
		return errors.New("the policy has not ended the visitor's connection")
	}
	return nil
}

// changeEndpoints takes a pod out of the large service, or puts one back.
func (c *chaos) changeEndpoints(_ context.Context, rng *rand.Rand) error {
	const name = "all"
	var in, out []int
	for _, pod := range c.mesh.behind(name) {
		if _, ok := c.mesh.pods[pod].Workload.Services[serviceKey(name)]; ok {
			in = append(in, pod)
		} else {
			out = append(out, pod)
		}
	}
	c.counts.endpoints.Add(1)
	if len(in) > len(out) && rng.IntN(2) == 0 || len(out) == 0 {
		pod := in[rng.IntN(len(in))]
		err := c.mesh.setEndpoint(name, pod, false)
		c.ledger.leave(name, pod)
		return err
	}
	pod := out[rng.IntN(len(out))]
	c.ledger.join(name, pod)
	return c.mesh.setEndpoint(name, pod, true)
}

// changeGuests takes a guest out of its service, lets its connections end, takes it out of the mesh, and brings it back.
func (c *chaos) changeGuests(ctx context.Context, rng *rand.Rand) error {
	const name = "guests"
	ctx, cancel := context.WithTimeoutCause(ctx, 2*patience, errors.New("it takes too long"))
	defer cancel()
	guests := c.mesh.behind(name)
	pod := guests[rng.IntN(len(guests))]
	if err := c.mesh.setEndpoint(name, pod, false); err != nil {
		return err
	}
	c.ledger.leave(name, pod)
	sleep(ctx, leaveGrace)
	for {
		n, err := c.fleet.serving(ctx, pod)
		if err != nil {
			return fmt.Errorf("connections of %s do not end: %w", c.mesh.pods[pod].Name(), err)
		}
		if n == 0 {
			break
		}
		sleep(ctx, 50*time.Millisecond)
	}
	if err := c.enrol(ctx, pod, false); err != nil {
		return err
	}
	sleep(ctx, time.Duration(rng.Int64N(int64(time.Second))))
	if err := c.enrol(ctx, pod, true); err != nil {
		return err
	}
	c.ledger.join(name, pod)
	c.counts.guests.Add(1)
	return c.mesh.setEndpoint(name, pod, true)
}

// enrol changes whether a guest is in the mesh and waits until its agent has done so.
func (c *chaos) enrol(ctx context.Context, pod int, in bool) error {
	agent := c.mesh.agentOf(pod)
	enrolled := func() float64 {
		n, err := agent.Metric("culvert_pods", `state="enrolled"`)
		if err != nil {
			return -1
		}
		return n
	}
	want := enrolled() - 1
	if in {
		want += 2
	}
	if err := c.mesh.setEnrolled(pod, in); err != nil {
		return err
	}
	if err := until(ctx, func() bool { return enrolled() == want }); err != nil {
		return fmt.Errorf("%s in=%t: %w", c.mesh.pods[pod].Name(), in, err)
	}
	return nil
}

// watchRotations counts the certificates of an agent that were replaced.
func (c *chaos) watchRotations(ctx context.Context, a *netlab.Agent) error {
	known := map[string]string{}
	for {
		_, text, err := a.Get("15020", "/metrics")
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "culvert_certificate_expiration_timestamp_seconds{") {
				continue
			}
			series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
			if was, ok := known[series]; ok && was != value {
				c.counts.rotations.Add(1)
			}
			known[series] = value
		}
		sleep(ctx, 2*time.Second)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// restore puts everything back, so that what the agents hold can be compared with the start.
func (c *chaos) restore() error {
	const name = "all"
	for _, pod := range c.mesh.behind(name) {
		c.ledger.join(name, pod)
		if err := c.mesh.setEndpoint(name, pod, true); err != nil {
			return err
		}
	}
	return c.mesh.edit(func(s *netlab.State) {
		s.Policies = slices.DeleteFunc(s.Policies, func(p *netlab.Policy) bool { return p.Action == "Deny" })
	})
}
