package kube

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

// run runs a command of this machine; the error has what it printed.
func run(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// inNet runs commands, one a line, in the network namespace of the machine with programs of this one: the machine may have
// no root yet.
func inNet(ctx context.Context, m *machine.Machine, script string) error {
	for line := range strings.Lines(script) {
		args := strings.Fields(line)
		if len(args) == 0 {
			continue
		}
		if err := run(ctx, append([]string{"nsenter", "--net=" + m.NetNS()}, args...)...); err != nil {
			return fmt.Errorf("configure network of %s: %w", m.Name(), err)
		}
	}
	return nil
}

// ownNetwork configures what the node needs alone.
func ownNetwork(ctx context.Context, m *machine.Machine) error {
	return inNet(ctx, m, `
		ip link set lo up
		sysctl -q -w net.ipv4.ip_forward=1
		sysctl -q -w net.ipv6.conf.all.forwarding=1
		sysctl -q -w net.ipv6.conf.default.accept_dad=0`)
}

// joinNodes puts a cable between the two machines, whichever of them is new, and routes the other's pods over it.
func joinNodes(ctx context.Context, a, b *machine.Machine) error {
	// A cable to a machine that is gone went with it, or goes within moments.
	_ = inNet(ctx, a, "ip link del "+WireInterface)
	_ = inNet(ctx, b, "ip link del "+WireInterface)
	err := run(ctx, "ip", "link", "add", WireInterface, "netns", strconv.Itoa(a.PID()), "type", "veth",
		"peer", "name", WireInterface, "netns", strconv.Itoa(b.PID()))
	if err != nil {
		return err
	}
	return errors.Join(wire(ctx, a), wire(ctx, b))
}

func wire(ctx context.Context, m *machine.Machine) error {
	p, ok := placeOf(m.Name())
	if !ok {
		return fmt.Errorf("no node %q", m.Name())
	}
	o := p.other()
	// The node itself calls services too: without a route to their addresses it would not get as far as kube-proxy's rules.
	script := fmt.Sprintf(`
		ip addr add %[2]s/24 dev %[1]s
		ip -6 addr add %[3]s/64 dev %[1]s nodad
		ip link set %[1]s up
		ip route replace %[4]s via %[5]s dev %[1]s
		ip -6 route replace %[6]s via %[7]s dev %[1]s
		ip route replace 10.96.0.0/16 dev %[1]s
		ip -6 route replace fd00:10:96::/112 dev %[1]s`,
		WireInterface, p.addr(), p.addr6(), o.pods(), o.addr(), o.pods6(), o.addr6())
	if !p.control() {
		script += "\nip route replace " + hostNet + " via " + o.addr() + " dev " + WireInterface
	}
	return inNet(ctx, m, script)
}

// joinHost puts a cable between this machine and the control plane: tests reach the API server over it.
func joinHost(ctx context.Context, m *machine.Machine) error {
	unjoinHost(ctx)
	if err := run(ctx, "ip", "link", "add", hostLink, "type", "veth", "peer", "name", "host0", "netns", strconv.Itoa(m.PID())); err != nil {
		return err
	}
	err := inNet(ctx, m, "ip addr add "+hostPeer+"/30 dev host0\nip link set host0 up")
	for _, args := range [][]string{
		{"ip", "addr", "add", hostAddr + "/30", "dev", hostLink},
		{"ip", "link", "set", hostLink, "up"},
		{"ip", "route", "replace", nodeNet, "via", hostPeer, "dev", hostLink},
		{"ip", "route", "replace", podNet4, "via", hostPeer, "dev", hostLink},
	} {
		if err == nil {
			err = run(ctx, args...)
		}
	}
	return err
}

// unjoinHost removes the cable if it is there; its routes go with it.
func unjoinHost(ctx context.Context) { _ = run(ctx, "ip", "link", "del", hostLink) }

func placeOf(name string) (place, bool) {
	for _, p := range places() {
		if p.name == name {
			return p, true
		}
	}
	return place{}, false
}
