package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/wiretap"
)

func demoCommand() *cobra.Command {
	var d demo
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the mesh at work on this machine",
		Long: `Build two nodes with four pods out of network namespaces on this machine, send real HTTP between them with the mesh off
and on, listen on the wire between the nodes, and show what a stranger there reads. Nothing outside the namespaces is
touched and nothing is left behind. Runs as root, or unprivileged where the kernel allows user namespaces.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.main(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&d.hold, "hold", false, "keep everything up at the end and print things to try")
	cmd.Flags().StringVar(&d.binary, "node-binary", "", "the culvert-node program; default: beside this one")
	cmd.AddCommand(demoAppCommand())
	return cmd
}

// demo is one run of the demonstration.
type demo struct {
	out    io.Writer
	hold   bool
	binary string

	lab                        *netlab.Lab
	client, web0, web1, mallet *netlab.Pod
	agents                     []*netlab.Agent
}

const (
	demoNamespace = "shop"
	demoVIP       = "10.96.0.10"
	nodeA, nodeB  = "node-a", "node-b"
)

func (d *demo) main(ctx context.Context) error {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Geteuid() != 0 {
		return inUserNamespace(ctx)
	}
	if err := d.findBinary(); err != nil {
		return err
	}
	if err := netns.Probe(netns.Needs{Namespaces: true, Capture: true}); err != nil {
		return fmt.Errorf("this machine cannot run the demo: %w", err)
	}
	start := time.Now()
	err := d.run(ctx)
	if d.lab != nil {
		err = errors.Join(err, d.lab.Close())
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nEverything is removed. It took %.1f s.\ndemo: ok\n", time.Since(start).Seconds())
	return nil
}

func (d *demo) findBinary() error {
	if d.binary == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find culvert-node: %w", err)
		}
		d.binary = filepath.Join(filepath.Dir(self), "culvert-node")
	}
	if _, err := exec.LookPath(d.binary); err != nil {
		return fmt.Errorf("find culvert-node: %w (`make build` makes it; --node-binary says where it is)", err)
	}
	return nil
}

func (d *demo) run(ctx context.Context) error {
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"Two nodes, four pods, a web server in two of them", d.build},
		{"The mesh is off: what a stranger on the wire reads", d.plaintext},
		{"An agent on each node, certificates for each service account", d.startAgents},
		{"The mesh is on: the same request, the same stranger", d.encrypted},
		{"A service: its name, its virtual address, both servers behind it", d.service},
		{"Who talked to whom", d.identities},
		{"A policy against one of them, while it is connected", d.policy},
	}
	for i, s := range steps {
		fmt.Fprintf(d.out, "\n%d. %s\n", i+1, s.title)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
		if err := ctx.Err(); err != nil {
			return errors.New("interrupted")
		}
	}
	if d.hold {
		d.wait(ctx)
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, "   "+format+"\n", args...) }

func (d *demo) build(context.Context) error {
	var err error
	if d.lab, err = netlab.New(netlab.Config{Binary: d.binary, Nodes: []string{nodeA, nodeB}}); err != nil {
		return err
	}
	for _, p := range []struct {
		pod        **netlab.Pod
		node, name string
	}{{&d.client, nodeA, "client"}, {&d.web0, nodeA, "web-0"}, {&d.web1, nodeB, "web-1"}, {&d.mallet, nodeB, "mallet"}} {
		if *p.pod, err = d.lab.AddPod(p.node, demoNamespace, p.name); err != nil {
			return err
		}
		d.say("%-7s on %s: %s, %s", p.name, p.node, (*p.pod).Addr(), (*p.pod).Addr6())
	}
	for _, web := range []*netlab.Pod{d.web0, d.web1} {
		web.Workload.ServiceAccount = "web"
		if err := d.serve(web); err != nil {
			return err
		}
	}
	d.lab.AddService(demoNamespace, "web", netip.MustParseAddr(demoVIP), map[uint16]uint16{80: 8080}, d.web0, d.web1)
	for _, p := range []*netlab.Pod{d.client, d.mallet} {
		resolv := "nameserver 10.96.0.53\nsearch " + demoNamespace + ".svc.cluster.local svc.cluster.local cluster.local\noptions timeout:2 attempts:2\n"
		if err := p.SetResolvConf(resolv); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) app(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return exec.Command(self, append([]string{"demo", "app"}, args...)...)
}

func (d *demo) serve(p *netlab.Pod) error {
	if _, err := p.Start(d.app("serve", "--name="+p.Name())); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := p.Dial(context.Background(), "tcp", "127.0.0.1:8080")
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the web server of %s does not listen: %w", p.Name(), err)
		}
	}
}

// fetch runs the client program in a pod.
func (d *demo) fetch(p *netlab.Pod, url string) (string, error) {
	cmd := d.app("fetch", url)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := p.Output(cmd)
	if err != nil {
		return "", fmt.Errorf("fetch %s in %s: %w %s", url, p.Name(), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

func (d *demo) tap() (*wiretap.Tap, error) {
	return wiretap.Start(wiretap.Config{NS: d.lab.Topology().Wire(), Interface: "port1", Needles: [][]byte{[]byte(secret)}})
}

// request fetches one page from web-1 with a tap on the wire and returns what the tap has seen.
func (d *demo) request() (wiretap.Report, error) {
	tap, err := d.tap()
	if err != nil {
		return wiretap.Report{}, err
	}
	answer, err := d.fetch(d.client, fmt.Sprintf("http://%s:8080/", d.web1.Addr()))
	report, tapErr := tap.Stop()
	if err := errors.Join(err, tapErr); err != nil {
		return report, err
	}
	d.say("client asks web-1 on the other node: %q", answer)
	for _, f := range report.Flows {
		d.say("on the wire: %s", f)
	}
	if !strings.Contains(answer, d.client.Addr().String()) {
		return report, errors.New("web-1 did not see the client's own address")
	}
	if !report.Complete() {
		return report, errors.New("the tap has missed packets; nothing is proved")
	}
	return report, nil
}

func (d *demo) plaintext(context.Context) error {
	report, err := d.request()
	if err != nil {
		return err
	}
	if !report.Found[0] {
		return errors.New("the tap did not see the plaintext payload: it proves nothing later")
	}
	d.say("the stranger read %q", secret)
	return nil
}

func (d *demo) startAgents(context.Context) error {
	for _, node := range []string{nodeA, nodeB} {
		a, err := d.lab.StartAgent(node, "--log-level=info")
		if err != nil {
			return err
		}
		d.agents = append(d.agents, a)
		d.say("culvert-node on %s is ready (pid %d)", node, a.Process().Pid())
	}
	return nil
}

func (d *demo) encrypted(context.Context) error {
	report, err := d.request()
	if err != nil {
		return err
	}
	if report.Found[0] {
		return errors.New("the payload was readable on the wire")
	}
	if open := report.Unencrypted(15008); len(open) > 0 {
		return fmt.Errorf("there is other traffic than TLS on port 15008: %v", open)
	}
	if len(report.Flows) == 0 {
		return errors.New("nothing crossed the wire")
	}
	d.say("the stranger read nothing but TLS records on port 15008")
	return nil
}

func (d *demo) service(context.Context) error {
	seen := map[string]int{}
	for _, url := range []string{"http://web/", "http://web." + demoNamespace + "/", "http://web." + demoNamespace + ".svc.cluster.local/"} {
		answer, err := d.fetch(d.client, url)
		if err != nil {
			return err
		}
		d.say("%-36s %s", url, answer)
	}
	for range 20 {
		answer, err := d.fetch(d.client, "http://"+demoVIP+"/")
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(answer, " ")
		seen[name]++
	}
	d.say("20 requests to http://%s/: %d answered by web-0, %d by web-1", demoVIP, seen["web-0"], seen["web-1"])
	if len(seen) != 2 {
		return errors.New("only one server behind the service answered")
	}
	return nil
}

func (d *demo) identities(context.Context) error {
	r, err := d.agents[1].WaitRecord(10*time.Second, func(r netlab.Record) bool {
		return r.Str("direction") == "inbound" && r.Str("src.identity") != ""
	})
	if err != nil {
		return err
	}
	for _, key := range []string{"src.addr", "src.workload", "src.identity", "dst.addr", "dst.hbone_addr", "dst.workload", "dst.identity", "bytes_sent", "bytes_recv", "duration"} {
		d.say("%-15s %s", key, r.Str(key))
	}
	if want := "spiffe://cluster.local/ns/" + demoNamespace + "/sa/client"; r.Str("src.identity") != want {
		return fmt.Errorf("web-1's agent saw %s, want %s", r.Str("src.identity"), want)
	}
	return nil
}

func (d *demo) policy(context.Context) error {
	url := fmt.Sprintf("http://%s:8080/stream", d.web0.Addr())
	cmd := d.app("follow", url)
	streaming := make(lineWriter, 1)
	var ended bytes.Buffer
	cmd.Stdout, cmd.Stderr = streaming, &ended
	p, err := d.mallet.Start(cmd)
	if err != nil {
		return err
	}
	select {
	case <-streaming:
	case <-p.Done():
		return fmt.Errorf("mallet could not connect: %s", ended.String())
	}
	d.say("mallet holds a stream from web-0")
	d.lab.State.Policies = append(d.lab.State.Policies, &netlab.Policy{
		Name: "no-mallet", Namespace: demoNamespace, Scope: "Namespace", Action: "Deny",
		Rules: [][][]map[string]any{{{{"principals": []map[string]string{{"Exact": "cluster.local/ns/" + demoNamespace + "/sa/mallet"}}}}}},
	})
	applied := time.Now()
	if err := d.lab.Apply(); err != nil {
		return err
	}
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	select {
	case <-p.Done():
	case <-limit.C:
		return errors.New("the stream goes on 10 s after the policy was written")
	}
	d.say("DENY policy no-mallet written: %s, %d ms later", strings.TrimPrefix(strings.TrimSpace(ended.String()), "culvert: "), time.Since(applied).Milliseconds())
	if !strings.Contains(ended.String(), "cut") {
		return errors.New("the stream was not cut")
	}
	if _, err := d.fetch(d.mallet, fmt.Sprintf("http://%s:8080/", d.web0.Addr())); err == nil {
		return errors.New("mallet may still connect")
	}
	d.say("mallet's next request is refused")
	if _, err := d.fetch(d.client, fmt.Sprintf("http://%s:8080/", d.web0.Addr())); err != nil {
		return fmt.Errorf("client is refused too: %w", err)
	}
	d.say("client's is answered")
	return nil
}

// lineWriter says that something was written.
type lineWriter chan struct{}

// Write implements io.Writer.
func (w lineWriter) Write(p []byte) (int, error) {
	select {
	case w <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (d *demo) wait(ctx context.Context) {
	fmt.Fprintf(d.out, "\nEverything stays up until Ctrl-C. Things to try from another terminal (as root):\n")
	for _, s := range []string{
		fmt.Sprintf("nsenter --net=%s curl http://%s/", d.client.Path(), demoVIP),
		fmt.Sprintf("nsenter --net=%s curl http://%s:8080/", d.mallet.Path(), d.web0.Addr()),
		fmt.Sprintf("nsenter --net=%s curl -s localhost:15020/metrics | grep istio_tcp", d.lab.Topology().Node(nodeA).Path()),
		fmt.Sprintf("nsenter --net=%s curl -s localhost:15000/config_dump", d.lab.Topology().Node(nodeB).Path()),
		fmt.Sprintf("edit %s and watch what happens", d.lab.StatePath()),
	} {
		d.say("%s", s)
	}
	<-ctx.Done()
}
