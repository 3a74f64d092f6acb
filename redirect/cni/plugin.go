package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
)

// MaxInput is the largest configuration that the program may read, in bytes.
const MaxInput = 4 << 20

// delTimeout bounds what DEL waits for: the runtime does not need the agent's answer.
const delTimeout = 2 * time.Second

// Versions are those of the CNI specification that the plugin speaks: all since chaining began with 0.3.0, which kube-router
// writes still.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Funcs returns the plugin's commands. The result of ADD goes to stdout. Each command
// returns nil or a *types.Error.
func Funcs(stdout io.Writer) skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    command("ADD", func(c *call) error { return c.add(stdout) }),
		Del:    command("DEL", (*call).del),
		Check:  command("CHECK", (*call).check),
		GC:     command("GC", func(*call) error { return nil }),
		Status: command("STATUS", (*call).status),
	}
}

// call is one run of the plugin.
type call struct {
	args *skel.CmdArgs
	in   input
	log  *slog.Logger
	pod  handoff.CNIPod
}

// command wraps a command: it reads the configuration, opens the log, and turns errors
// and panics into errors of CNI.
func command(name string, do func(*call) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) (err error) {
		c := &call{args: args, log: slog.New(slog.DiscardHandler)}
		began := time.Now()
		var file *logFile
		defer func() {
			defer func() { file.close() }()
			if p := recover(); p != nil {
				c.log.Error("panic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				err = fmt.Errorf("internal error: panic: %.200v", p)
			}
			if err != nil {
				c.log.Error("failed", "error", err, "duration", time.Since(began).Round(time.Millisecond).String())
				err = cniError(err)
			}
		}()
		if c.in, err = parseInput(args.StdinData); err != nil {
			if name == "DEL" || name == "GC" { // these never fail: a pod must be able to end
				return nil
			}
			return &types.Error{Code: types.ErrInvalidNetworkConfig, Msg: err.Error()}
		}
		file = openLog(c.in.LogFile)
		c.log = file.logger().With("command", name, "container", args.ContainerID)
		return do(c)
	}
}

// cniError gives err the form that CNI wants, and a code.
func cniError(err error) error {
	var have *types.Error
	switch {
	case errors.As(err, &have):
		return have
	case errors.Is(err, errAway):
		return &types.Error{Code: types.ErrTryAgainLater, Msg: "culvert: " + err.Error()}
	}
	return &types.Error{Code: types.ErrInternal, Msg: "culvert: " + err.Error()}
}

// add lets a pod start, or not.
func (c *call) add(stdout io.Writer) error {
	if err := c.decide((*handoff.Client).CNIAdd); err != nil {
		return err
	}
	if _, err := stdout.Write(c.in.PrevResult); err != nil {
		return &types.Error{Code: types.ErrIOFailure, Msg: fmt.Sprintf("write result: %v", err)}
	}
	return nil
}

// check reports whether a pod is what it should be.
func (c *call) check() error { return c.decide((*handoff.Client).CNICheck) }

// ask is a request to the agent: CNIAdd or CNICheck.
type ask func(c *handoff.Client, ctx context.Context, pod handoff.CNIPod, ns *netns.NS) (enrolled bool, err error)

// decide returns nil if the pod may go on.
func (c *call) decide(ask ask) error {
	addrs, err := addressesOf(c.in)
	if err != nil {
		return &types.Error{Code: types.ErrInvalidNetworkConfig, Msg: err.Error()}
	}
	if pass, err := c.exempt(); pass || err != nil {
		return err
	}
	c.pod.Addresses = addrs
	ns, err := c.namespace()
	if err != nil {
		return &types.Error{Code: types.ErrInvalidNetNS, Msg: err.Error()}
	}
	defer func() { _ = ns.Close() }()
	enrolled, err := c.agent(func(ctx context.Context, client *handoff.Client) (bool, error) {
		return ask(client, ctx, c.pod, ns)
	})
	var refused *handoff.RemoteError
	switch {
	case err == nil && enrolled:
		return c.pass("enrolled")
	case err == nil:
		return c.pass("agent leaves the pod out")
	case errors.As(err, &refused):
		return fmt.Errorf("pod %s cannot join the mesh: %s", c.pod, refused.Text)
	}
	return c.decideAlone(fmt.Errorf("%w: %w", errAway, err))
}

// exempt finds the pod, and reports whether nobody needs to be asked about it.
func (c *call) exempt() (pass bool, err error) {
	pod, ok, err := podOf(c.args.Args)
	if err != nil {
		return false, &types.Error{Code: types.ErrInvalidEnvironmentVariables, Msg: err.Error()}
	}
	c.pod = pod
	if !ok {
		return true, c.pass("no pod of Kubernetes")
	}
	c.log = c.log.With("pod", pod.Name, "namespace", pod.Namespace, "uid", pod.UID)
	for _, n := range c.in.ExcludeNamespaces {
		if n == pod.Namespace {
			return true, c.pass("excluded namespace")
		}
	}
	if ownPod(pod, c.in.OwnNamespace) {
		return true, c.pass("the mesh's own pod")
	}
	return false, nil
}

func (c *call) pass(reason string) error {
	c.log.Info("passed", "reason", reason)
	return nil
}

// namespace opens the pod's network namespace, which must not be the plugin's own.
func (c *call) namespace() (*netns.NS, error) {
	ns, err := netns.Open(c.args.Netns)
	if err != nil {
		return nil, err
	}
	own, err := netns.Current()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	defer func() { _ = own.Close() }()
	if own.ID() == ns.ID() {
		return nil, errors.Join(errors.New("CNI_NETNS is the network namespace of the host"), ns.Close())
	}
	return ns, nil
}

// agent calls f with a connection to the agent, within AgentTimeout.
func (c *call) agent(f func(context.Context, *handoff.Client) (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.in.AgentTimeout))
	defer cancel()
	client, err := handoff.Dial(ctx, c.in.AgentSocket)
	if err != nil {
		return false, err
	}
	defer func() { _ = client.Close() }()
	return f(ctx, client)
}

// decideAlone decides while the agent is away, for which away is the reason.
func (c *call) decideAlone(away error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.in.APITimeout))
	defer cancel()
	in, why, err := lookUp(ctx, c.in.APIFile, c.pod, c.in.Selectors)
	switch {
	case err != nil:
		return fmt.Errorf("pod %s: %w; and whether it is to be in the mesh cannot be found out: %w", c.pod, away, err)
	case in:
		return fmt.Errorf("pod %s is to be in the mesh (%s): %w", c.pod, why, away)
	}
	return c.pass("agent is away, and the pod is not to be in the mesh: " + why)
}

// del has the agent give up the namespace. A pod must be able to end without agent.
func (c *call) del() error {
	if pass, err := c.exempt(); pass || err != nil {
		return nil
	}
	var ns *netns.NS
	if c.args.Netns != "" {
		var err error
		if ns, err = c.namespace(); err == nil {
			defer func() { _ = ns.Close() }()
		} // else it is gone, as it may be
	}
	c.in.AgentTimeout = min(c.in.AgentTimeout, Duration(delTimeout))
	_, err := c.agent(func(ctx context.Context, client *handoff.Client) (bool, error) {
		return false, client.CNIDel(ctx, c.pod, ns)
	})
	c.log.Info("deleted", "agent", outcome(err))
	return nil
}

// status says whether the agent can enrol.
func (c *call) status() error {
	_, err := c.agent(func(ctx context.Context, client *handoff.Client) (bool, error) {
		return false, client.CNIStatus(ctx)
	})
	c.log.Info("status", "agent", outcome(err))
	if err == nil || !c.in.StatusNeedsAgent {
		return nil
	}
	var refused *handoff.RemoteError
	if errors.As(err, &refused) {
		return &types.Error{Code: types.ErrPluginNotAvailable, Msg: "culvert: agent cannot enrol pods: " + refused.Text}
	}
	// Pods that are enrolled already have no agent that carries their traffic.
	return &types.Error{Code: types.ErrLimitedConnectivity, Msg: fmt.Sprintf("culvert: %v: %v", errAway, err)}
}

func outcome(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}
