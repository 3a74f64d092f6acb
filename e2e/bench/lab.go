package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// app is one of the servers that every system carries connections to.
type app struct {
	name string
	port uint16
}

var (
	appIperf = app{"iperf", 5201}
	appHTTP  = app{"http", 8080}
	appRate  = app{"rate", 9000}
	appHold  = app{"hold", 9001}
)

func apps() []app { return []app{appIperf, appHTTP, appRate, appHold} }

// lab is a client's and a server's namespace with the servers running.
type lab struct {
	pair *topology.Pair
	self string // this program
	dir  string // for configuration and logs
}

func newLab(name, congestion, keep string) (*lab, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	pair, err := topology.NewPair("client", "server", congestion)
	if err != nil {
		return nil, err
	}
	l := &lab{pair: pair, self: self, dir: pair.Dir()}
	if keep != "" {
		l.dir = filepath.Join(keep, name)
	}
	if err := l.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("set up lab: %w", err), l.close())
	}
	return l, nil
}

func (l *lab) close() error { return l.pair.Close() }

func (l *lab) client() *topology.Pod { return l.pair.A }
func (l *lab) server() *topology.Pod { return l.pair.B }

// address is where an application really listens.
func (l *lab) address(a app) netip.AddrPort { return netip.AddrPortFrom(l.server().Addr(), a.port) }

func (l *lab) setUp() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	for _, pod := range []*topology.Pod{l.client(), l.server()} {
		err := errors.Join(
			// Thousands of connections a second need ports; 15000 to 15090 are the agent's.
			pod.Sysctl("net/ipv4/ip_local_port_range", "20000 65000"),
			pod.Sysctl("net/core/somaxconn", "16384"),
			pod.Sysctl("net/ipv4/tcp_max_syn_backlog", "16384"),
		)
		if err != nil {
			return err
		}
	}
	conf := filepath.Join(l.dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(nginxConfig(l.dir)), 0o644); err != nil {
		return err
	}
	servers := [][]string{
		{"nginx", "-c", conf, "-p", l.dir, "-e", "stderr"},
		{"iperf3", "-s", "-p", strconv.Itoa(int(appIperf.port))},
		{l.self, "tool", "rate-server", fmt.Sprintf("0.0.0.0:%d", appRate.port)},
		{l.self, "tool", "hold-server", fmt.Sprintf("0.0.0.0:%d", appHold.port)},
	}
	for _, args := range servers {
		if err := l.startLogged(l.server(), filepath.Base(args[0])+"-server", args); err != nil {
			return err
		}
	}
	for _, a := range apps() {
		if err := waitListening(l.server(), a.port, 10*time.Second); err != nil {
			return fmt.Errorf("server %s: %w", a.name, err)
		}
	}
	return nil
}

// place is a namespace that processes are started in.
type place interface {
	Name() string
	Start(cmd *exec.Cmd) (*topology.Process, error)
	Do(fn func() error) error
}

func (l *lab) startLogged(in place, name string, args []string) error {
	_, err := l.start(in, name, args)
	return err
}

// start runs a program for the life of the lab, with its output in DIR/NAME.log.
func (l *lab) start(in place, name string, args []string) (*topology.Process, error) {
	log, err := os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	return in.Start(cmd)
}

// output runs a program to its end in the client's namespace.
func (l *lab) output(ctx context.Context, args ...string) ([]byte, error) {
	return l.client().Output(exec.CommandContext(ctx, args[0], args[1:]...))
}

// waitListening waits until some socket of the namespace listens on the TCP port. It looks at the kernel's table
// instead of connecting, because a probe would count as a connection.
func waitListening(in place, port uint16, timeout time.Duration) error {
	want := fmt.Sprintf(":%04X ", port)
	for deadline := time.Now().Add(timeout); ; time.Sleep(10 * time.Millisecond) {
		found := false
		err := in.Do(func() error {
			for _, table := range []string{"tcp", "tcp6"} {
				text, err := os.ReadFile("/proc/thread-self/net/" + table)
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(text)) {
					fields := strings.Fields(line)
					if len(fields) > 3 && fields[3] == "0A" && strings.HasSuffix(fields[1]+" ", want) {
						found = true
					}
				}
			}
			return nil
		})
		switch {
		case err != nil:
			return err
		case found:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("nothing listens on port %d in %s after %v", port, in.Name(), timeout)
		}
	}
}

// answerSize is the length of the HTTP answer's body.
const answerSize = 100

func nginxConfig(dir string) string {
	return fmt.Sprintf(`daemon off;
user root;
# One process, which ends with the program that started it.
master_process off;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 16384; }
http {
  access_log off;
  default_type text/plain;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  server {
    listen %[2]d backlog=4096;
    location / { return 200 "%[3]s"; }
  }
}
`, dir, appHTTP.port, strings.Repeat("x", answerSize))
}
