// culvert-cluster starts and ends the two-node Kubernetes that the tests in e2e/cluster run against.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/e2e/cluster/kube"
	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

const usage = `usage: culvert-cluster [flags] up|down|status|reboot NODE|exec NODE COMMAND...|import FILE...
`

func main() {
	machine.Reexec()
	flags := flag.NewFlagSet("culvert-cluster", flag.ExitOnError)
	dir := flags.String("dir", "bin/cluster", "directory for everything that the cluster writes")
	binaries := flags.String("binaries", "bin/kubernetes", "directory with Kubernetes' programs, dns and pause")
	flags.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flags.PrintDefaults()
	}
	_ = flags.Parse(os.Args[1:]) // it exits
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	cfg := kube.Config{Dir: *dir, Binaries: *binaries, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if err := command(ctx, cfg, flags.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "culvert-cluster: %v\n", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, cfg kube.Config, args []string) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("a cluster needs root: it makes namespaces, cgroups and mounts")
	}
	if len(args) == 0 {
		return fmt.Errorf("no command\n%s", usage)
	}
	switch name := args[0]; {
	case name == "up":
		return up(ctx, cfg)
	case name == "down":
		return kube.Down(ctx, cfg)
	default:
		c, err := kube.Open(cfg)
		if err != nil {
			return err
		}
		return with(ctx, c, name, args[1:])
	}
}

func with(ctx context.Context, c *kube.Cluster, name string, args []string) error {
	switch {
	case name == "status":
		if err := c.Ready(ctx, 5*time.Second); err != nil {
			return err
		}
		fmt.Println("ready, export KUBECONFIG=" + c.Kubeconfig())
		return nil
	case name == "reboot" && len(args) == 1:
		return c.Reboot(ctx, args[0])
	case name == "exec" && len(args) > 1 && c.Node(args[0]) != nil:
		cmd := c.Node(args[0]).Command(ctx, args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	case name == "import" && len(args) > 0:
		for _, file := range args {
			if err := c.Import(ctx, file); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown command %s %q\n%s", name, args, usage)
}

func up(ctx context.Context, cfg kube.Config) error {
	started := time.Now()
	c, err := kube.Up(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Printf("two nodes are ready after %.0f s\nexport KUBECONFIG=%s\n", time.Since(started).Seconds(), c.Kubeconfig())
	return nil
}
