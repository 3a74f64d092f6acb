package topology

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// space is one namespace of a topology: what nodes and pods have in common.
type space struct {
	topology *Topology
	name     string
	ns       *netns.NS
	path     string
	resolv   string // file that stands for /etc/resolv.conf; empty for the machine's own
}

// setting is one file below /proc/sys and what it is to hold.
type setting struct{ name, value string }

// Name is the name that the namespace has in the topology.
func (s *space) Name() string { return s.name }

// NS is the namespace. The topology owns it; callers that keep it longer take a Dup.
func (s *space) NS() *netns.NS { return s.ns }

// Path leads to the namespace as long as the topology exists, for other processes too: `nsenter --net=PATH`.
func (s *space) Path() string { return s.path }

// Do calls fn on a thread inside the namespace; see netns.NS.Do for what fn must not do.
func (s *space) Do(fn func() error) error { return s.ns.Do(fn) }

// Sysctl writes a setting of the namespace, named as below /proc/sys ("net/ipv4/tcp_rmem").
func (s *space) Sysctl(name, value string) error {
	return s.apply([]setting{{name, value}})
}

func (s *space) apply(settings []setting) error {
	return s.ns.Do(func() error {
		for _, c := range settings {
			if err := os.WriteFile(filepath.Join("/proc/sys", c.name), []byte(c.value), 0); err != nil {
				return fmt.Errorf("set %s to %s in %s: %w", c.name, c.value, s.name, err)
			}
		}
		return nil
	})
}

// ReadSysctl returns a setting of the namespace without its line end.
func (s *space) ReadSysctl(name string) (string, error) {
	var text []byte
	err := s.ns.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read %s in %s: %w", name, s.name, err)
	}
	for len(text) > 0 && text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	return string(text), nil
}

// Listen opens a TCP listener inside the namespace. The address is a literal ("10.1.1.2:80", "[::]:80").
func (s *space) Listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // its sockets know no SO_ORIGINAL_DST
	var l net.Listener
	err := s.ns.Do(func() (err error) {
		l, err = lc.Listen(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", s.name, err)
	}
	return l, nil
}

// ListenPacket opens a UDP socket inside the namespace. The address is a literal.
func (s *space) ListenPacket(ctx context.Context, address string) (net.PacketConn, error) {
	var lc net.ListenConfig
	var c net.PacketConn
	err := s.ns.Do(func() (err error) {
		c, err = lc.ListenPacket(ctx, "udp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", s.name, err)
	}
	return c, nil
}

// Dial connects from inside the namespace; network is "tcp" or "udp", the address a literal. It has the signature of
// http.Transport.DialContext.
func (s *space) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	var c net.Conn
	err := s.ns.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", s.name, err)
	}
	return c, nil
}

// SetResolvConf gives processes that are started in the namespace from now on their own /etc/resolv.conf. The text is
// kept in the file that ResolvConf names.
func (s *space) SetResolvConf(text string) error {
	s.topology.mu.Lock()
	defer s.topology.mu.Unlock()
	if s.topology.closed {
		return fmt.Errorf("write resolv.conf of %s: %w", s.name, os.ErrClosed)
	}
	dir := filepath.Join(s.topology.dir, "etc", s.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write resolv.conf of %s: %w", s.name, err)
	}
	path := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write resolv.conf of %s: %w", s.name, err)
	}
	s.resolv = path
	return nil
}

// ResolvConf is the file that stands for /etc/resolv.conf in the namespace.
func (s *space) ResolvConf() string {
	s.topology.mu.Lock()
	defer s.topology.mu.Unlock()
	if s.resolv == "" {
		return "/etc/resolv.conf"
	}
	return s.resolv
}

// Start starts the command inside the namespace. The process is killed when the topology is closed or this process
// ends. The command's fields are used as exec.Cmd.Start does, but nobody else may call its Wait.
func (s *space) Start(cmd *exec.Cmd) (*Process, error) {
	p, err := s.topology.start(s, cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", filepath.Base(cmd.Path), s.name, err)
	}
	return p, nil
}

// Output runs the command inside the namespace and returns what it wrote to its standard output.
func (s *space) Output(cmd *exec.Cmd) ([]byte, error) {
	var out limitedBuffer
	cmd.Stdout = &out
	var stderr limitedBuffer
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	p, err := s.Start(cmd)
	if err != nil {
		return nil, err
	}
	if err := p.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("run %s in %s: %w: %s", filepath.Base(cmd.Path), s.name, err, stderr.Bytes())
	}
	return out.Bytes(), nil
}

// outputLimit is how much of a command's output Output keeps.
const outputLimit = 16 << 20

// limitedBuffer keeps the first outputLimit bytes written to it.
type limitedBuffer struct{ data []byte }

func (b *limitedBuffer) Bytes() []byte { return b.data }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), outputLimit-len(b.data))]...)
	return len(p), nil
}
