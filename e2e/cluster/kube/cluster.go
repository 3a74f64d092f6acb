package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

// Config says where a cluster lives.
type Config struct {
	// Dir is the directory for everything that the cluster writes. Required.
	Dir string
	// Binaries is the directory with Kubernetes' programs and with dns and pause; Up needs it.
	Binaries string
	// Logger tells what is done; nil discards it.
	Logger *slog.Logger
}

// Cluster is a cluster that runs.
type Cluster struct {
	cfg   Config
	nodes map[string]*machine.Machine
}

func withDefaults(cfg Config) (Config, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dir == "" {
		return cfg, errors.New("no directory is given")
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return cfg, err
	}
	if cfg.Binaries != "" {
		cfg.Binaries, err = filepath.Abs(cfg.Binaries)
	}
	return cfg, err
}

// Open finds the cluster that runs in the directory. The error wraps fs.ErrNotExist when a node is missing.
func Open(cfg Config) (*Cluster, error) {
	cfg, err := withDefaults(cfg)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, nodes: make(map[string]*machine.Machine)}
	for _, p := range places() {
		m, err := machine.Open(c.nodeDir(p.name))
		if err != nil {
			return nil, err
		}
		c.nodes[p.name] = m
	}
	return c, nil
}

// Up starts the cluster, or finds it running and healthy, and returns when both nodes are Ready and names resolve. What an
// earlier cluster left is removed first. A cluster of another directory is left alone, and an error.
func Up(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg, err := withDefaults(cfg)
	if err != nil {
		return nil, err
	}
	if c, err := Open(cfg); err == nil {
		if err := c.Ready(ctx, 20*time.Second); err == nil {
			return c, nil
		}
		cfg.Logger.Info("a cluster is there and does not answer: starting anew")
	}
	others, err := machine.Elsewhere(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("another test cluster runs on this machine, in %s: end it first", strings.Join(others, " and "))
	}
	if err := Down(ctx, cfg); err != nil {
		return nil, fmt.Errorf("remove what an earlier cluster left: %w", err)
	}
	c := &Cluster{cfg: cfg, nodes: make(map[string]*machine.Machine)}
	if err := c.start(ctx); err != nil {
		// The logs are the only thing that tells why: they stay until the next Up or Down.
		return nil, errors.Join(err, c.kill())
	}
	return c, nil
}

// Down ends the cluster of the directory, however much of it there is, and removes the directory.
func Down(ctx context.Context, cfg Config) error {
	cfg, err := withDefaults(cfg)
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(cfg.Dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(cfg.Dir, marker)); err != nil {
			return fmt.Errorf("%s is not the directory of a test cluster: it has no file %s", cfg.Dir, marker)
		}
	}
	others, err := machine.Elsewhere(cfg.Dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, p := range places() {
		failed = append(failed, machine.Remove(filepath.Join(cfg.Dir, p.name)))
	}
	if len(others) == 0 {
		failed = append(failed, machine.Sweep())
		unjoinHost(ctx)
	}
	return errors.Join(append(failed, os.RemoveAll(cfg.Dir))...)
}

// marker is a file in a cluster's directory, so that Down deletes nothing else.
const marker = "culvert-test-cluster"

// start brings up everything. The control plane, its node and the second node start side by side.
func (c *Cluster) start(ctx context.Context) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.cfg.Dir, marker), nil, 0o644); err != nil {
		return err
	}
	if err := c.writeCredentials(); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	for _, p := range places() {
		m, err := machine.Create(c.spec(p))
		if err != nil {
			return err
		}
		c.nodes[p.name] = m
		if err := errors.Join(ownNetwork(ctx, m), c.plugins(p)); err != nil {
			return err
		}
	}
	if err := c.wireAndGo(ctx, places()...); err != nil {
		return err
	}
	c.cfg.Logger.Info("machines run")
	if err := c.ownImages(ctx); err != nil {
		return err
	}
	if err := c.poll(ctx, 2*time.Minute, "the API server", func() error { return c.kubectlQuiet(ctx, "get", "--raw=/readyz") }); err != nil {
		return err
	}
	c.cfg.Logger.Info("API server is ready")
	if err := c.Apply(ctx, dnsManifest()); err != nil {
		return err
	}
	return c.Ready(ctx, 3*time.Minute)
}

func (c *Cluster) wireAndGo(ctx context.Context, fresh ...place) error {
	n1, n2 := c.nodes["node1"], c.nodes["node2"]
	if err := joinNodes(ctx, n1, n2); err != nil {
		return err
	}
	for _, p := range fresh {
		if p.control() {
			if err := joinHost(ctx, c.nodes[p.name]); err != nil {
				return err
			}
		}
		if err := c.nodes[p.name].Go(); err != nil {
			return err
		}
	}
	return nil
}

// plugins lays the CNI plugins and their configuration where the node's runtime looks, in the node's own layer: what others
// add there later is the node's alone.
func (c *Cluster) plugins(p place) error {
	upper := filepath.Join(c.nodeDir(p.name), "upper")
	bin, conf := filepath.Join(upper, "opt/cni/bin"), filepath.Join(upper, "etc/cni/net.d")
	if err := errors.Join(os.MkdirAll(bin, 0o755), os.MkdirAll(conf, 0o755)); err != nil {
		return err
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap"} {
		if err := copyFile(filepath.Join("/usr/lib/cni", name), filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("copy CNI plugins (Debian's containernetworking-plugins): %w", err)
		}
	}
	return os.WriteFile(filepath.Join(conf, "10-testnet.conflist"), []byte(cniConfig(p)), 0o644)
}

// Ready waits until the API server answers, both nodes are Ready and the DNS server has endpoints.
func (c *Cluster) Ready(ctx context.Context, limit time.Duration) error {
	return c.poll(ctx, limit, "the cluster", func() error {
		out, err := c.Kubectl(ctx, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
		if err != nil {
			return err
		}
		for _, p := range places() {
			if !strings.Contains(out, p.name+"=True") {
				return fmt.Errorf("nodes: %s", out)
			}
		}
		out, err = c.Kubectl(ctx, "-n", "kube-system", "get", "deployment", "kube-dns", "-o", "jsonpath={.status.readyReplicas}")
		if err == nil && out != "2" {
			err = fmt.Errorf("ready DNS servers: %q of 2", out)
		}
		return err
	})
}

// poll asks until there is no error.
func (c *Cluster) poll(ctx context.Context, limit time.Duration, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w", what, limit, err)
		case <-time.NewTimer(200 * time.Millisecond).C:
		}
	}
}

func (c *Cluster) kill() error {
	var failed []error
	for _, p := range places() {
		if m := c.nodes[p.name]; m != nil {
			failed = append(failed, m.Kill())
		}
	}
	return errors.Join(failed...)
}

// Kubeconfig is the administrator's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.cfg.Dir, "kubeconfig") }

// Node is the machine of a node ("node1", "node2"), nil when there is none of that name.
func (c *Cluster) Node(name string) *machine.Machine { return c.nodes[name] }

// Nodes are the names of the nodes; the first has the control plane.
func (c *Cluster) Nodes() []string { return []string{"node1", "node2"} }

func (c *Cluster) nodeDir(name string) string { return filepath.Join(c.cfg.Dir, name) }
func (c *Cluster) pkiDir() string             { return filepath.Join(c.cfg.Dir, "pki") }

// within reports whether path lies in dir.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	_ = os.Remove(to)
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// IsMissing reports whether the error says that no cluster runs.
func IsMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
