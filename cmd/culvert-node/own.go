package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/culvert-mesh/culvert/cmd/internal/run"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/spire"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/origdst"
)

// buildOwn makes the agent of a node reachable over HBONE under its own identity, so that its metrics can be read over
// mTLS (reference 3.9). It is inbound only. In the agent's own namespace nothing is captured: sockets there carry no
// mark, and applications are reached from the agent's own address.
func (n *node) buildOwn(td identity.TrustDomain) ([]run.Component, error) {
	s := n.settings
	if s.mode != modeNode || s.podName == "" || s.podNamespace == "" || s.serviceAcct == "" {
		return nil, nil
	}
	id, err := identity.New(td, s.podNamespace, s.serviceAcct)
	if err != nil {
		return nil, fmt.Errorf("the agent's own identity: %w", err)
	}
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	listener, err := listen(ns, proxy.HBONEPort, 0)
	if err != nil {
		return nil, fmt.Errorf("serve the agent's own pod: %w", err)
	}
	cfg := proxy.PodConfig{
		UID: "own", Namespace: s.podNamespace, Name: s.podName, ServiceAccount: s.serviceAcct,
		Sockets: sockets{ns, 0}, OriginalDst: origdst.TCP, Inbound: listener, NoSource: true,
	}
	return []run.Component{{Name: "own pod", Run: func(ctx context.Context) error {
		defer func() { _ = ns.Close() }()
		if err := n.waitState(ctx); err != nil {
			_ = listener.Close()
			return nil //nolint:nilerr // stopping
		}
		defer n.certificates.introduce(spire.Workload{Namespace: s.podNamespace, ServiceAccount: s.serviceAcct, Name: s.podName})()
		n.certificates.enter(id)
		pod, err := n.proxy.Start(cfg)
		if errors.Is(err, proxy.ErrStopped) {
			return nil
		}
		if err != nil {
			return err
		}
		<-ctx.Done()
		pod.Stop(ctx)
		return nil
	}}}, nil
}
