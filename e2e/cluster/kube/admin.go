package kube

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/cluster/archive"
	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

//go:embed dns.yaml
var dnsYAML string

func dnsManifest() string {
	return strings.NewReplacer("$ADDRESS", dnsAddr, "$IMAGE", dnsImage, "$DOMAIN", clusterName).Replace(dnsYAML)
}

// writeCredentials writes certificates and kubeconfig files of everyone who talks to the API server.
func (c *Cluster) writeCredentials() error {
	p, err := newPKI(c.pkiDir())
	if err != nil {
		return err
	}
	server := []string{"127.0.0.1", "::1", "10.96.0.1", "fd00:10:96::1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + clusterName}
	for _, n := range places() {
		server = append(server, n.addr(), n.addr6())
	}
	failed := []error{
		p.issue("apiserver", "kube-apiserver", nil, server...),
		p.issue("sa", "service-accounts", nil),
		p.issue("admin", "culvert-e2e-admin", []string{"system:masters"}),
	}
	users := []string{"kube-controller-manager", "kube-scheduler", "kube-proxy"}
	for _, user := range users {
		failed = append(failed, p.issue(user, "system:"+user, nil))
	}
	for _, n := range places() {
		user := "kubelet-" + n.name
		users = append(users, user)
		failed = append(failed, p.issue(user, n.user(), n.groups(), n.addr(), n.addr6(), n.name))
	}
	for _, user := range users {
		failed = append(failed, p.writeKubeconfig(p.path(user+".kubeconfig"), user))
	}
	return errors.Join(append(failed, p.writeKubeconfig(c.Kubeconfig(), "admin"))...)
}

// Kubectl runs kubectl with the administrator's rights and returns what it printed, without the end of the line.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, nil, args...)
}

// Apply applies manifests.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	_, err := c.kubectl(ctx, strings.NewReader(manifests), "apply", "--server-side", "-f", "-")
	return err
}

func (c *Cluster) kubectlQuiet(ctx context.Context, args ...string) error {
	_, err := c.kubectl(ctx, nil, args...)
	return err
}

func (c *Cluster) kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.binary("kubectl"), append([]string{"--request-timeout=20s"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(c.cfg.Dir, "kubectl"))
	cmd.Stdin = stdin
	var out, diag strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(diag.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// ownImages builds the images that the cluster itself needs and imports them.
func (c *Cluster) ownImages(ctx context.Context) error {
	for _, image := range []struct{ name, program string }{{pauseImage, "pause"}, {dnsImage, "dns"}} {
		file := filepath.Join(c.cfg.Dir, "images", image.program+".tar")
		if err := archive.Write(file, archive.Image{Name: image.name, Programs: []string{c.binary(image.program)}}); err != nil {
			return err
		}
		if err := c.Import(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// Import loads an image archive (docker or OCI layout) into the runtime of every node.
func (c *Cluster) Import(ctx context.Context, file string) error {
	for _, name := range c.Nodes() {
		if err := c.poll(ctx, time.Minute, "the container runtime of "+name, func() error { return importInto(ctx, c.nodes[name], file) }); err != nil {
			return err
		}
	}
	return nil
}

func importInto(ctx context.Context, m *machine.Machine, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	cmd := m.Command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "--all-platforms", "-")
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s into %s: %w: %s", filepath.Base(file), m.Name(), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Reboot pulls the plug of a node and switches it on again: its files are what they were, its memory is empty. It returns
// before the node is Ready.
func (c *Cluster) Reboot(ctx context.Context, name string) error {
	p, ok := placeOf(name)
	if !ok {
		return fmt.Errorf("reboot: no node %q", name)
	}
	if err := c.nodes[name].Kill(); err != nil {
		return err
	}
	m, err := machine.Create(c.spec(p))
	if err != nil {
		return err
	}
	c.nodes[name] = m
	if err := ownNetwork(ctx, m); err != nil {
		return err
	}
	return c.wireAndGo(ctx, p)
}
