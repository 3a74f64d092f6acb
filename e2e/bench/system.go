package main

import (
	"context"
	"net/netip"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// system is one way for bytes to get from the client's namespace to the server's.
type system interface {
	// start makes the system ready to carry connections. It is called once.
	start(ctx context.Context, l *lab) error
	// target is the address that a client connects to for the application.
	target(a app) netip.AddrPort
	// agents are the processes whose CPU time and memory count: the client's side first. None for direct.
	agents() []*topology.Process
	// descriptors is how many descriptors one connection takes in each agent; 0 when that does not matter.
	descriptors() int
	// check compares what the system counted with the connections that were made through it.
	check(ctx context.Context, made int) error
	// version says what was measured.
	version() string
	// stop ends the agents. The lab kills what is left.
	stop() error
}

// direct is no system at all: the upper bound.
type direct struct{ lab *lab }

func (d *direct) start(_ context.Context, l *lab) error { d.lab = l; return nil }
func (d *direct) target(a app) netip.AddrPort           { return d.lab.address(a) }
func (d *direct) agents() []*topology.Process           { return nil }
func (d *direct) descriptors() int                      { return 0 }
func (d *direct) check(context.Context, int) error      { return nil }
func (d *direct) version() string                       { return "" }
func (d *direct) stop() error                           { return nil }
