package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity/ca/server"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/source/kube"
)

// pods shows the Source's cache of pods to the authorizer.
type pods struct{ source *kube.Source }

// Pod implements kubeca.Pods.
func (p pods) Pod(namespace, name string) (kubeca.Pod, bool) {
	pod, ok := p.source.Pod(namespace, name)
	return podOf(pod), ok
}

// PodsOnNode implements kubeca.Pods.
func (p pods) PodsOnNode(node string) []kubeca.Pod {
	list := p.source.PodsOnNode(node)
	out := make([]kubeca.Pod, len(list))
	for i := range list {
		out[i] = podOf(list[i])
	}
	return out
}

func podOf(p kube.Pod) kubeca.Pod {
	return kubeca.Pod{
		UID: p.UID, Namespace: p.Namespace, Name: p.Name, ServiceAccount: p.ServiceAccount,
		Node: p.Node, HostNetwork: p.HostNetwork, Terminal: p.Terminal,
	}
}

// doorkeeper decides who is let in.
type doorkeeper struct {
	tokens interface {
		Authenticate(ctx context.Context, token string) (server.Caller, error)
	}
	nodes interface {
		Agent(ctx context.Context, caller server.Caller) (kubeca.Pod, error)
	}
	// synced is closed when pods are known. Before that nobody can be told from anybody.
	synced <-chan struct{}
}

// caller is who asks for a certificate.
func (d *doorkeeper) caller(ctx context.Context, token string) (server.Caller, error) {
	select {
	case <-d.synced:
		return d.tokens.Authenticate(ctx, token)
	default:
		return server.Caller{}, fmt.Errorf("pods are not known yet: %w", server.ErrUnavailable)
	}
}

// agent is who subscribes: a node agent, on the node that the cluster says its pod is on.
func (d *doorkeeper) agent(ctx context.Context, token string) (publish.Peer, error) {
	caller, err := d.caller(ctx, token)
	if errors.Is(err, server.ErrUnavailable) {
		return publish.Peer{}, status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		return publish.Peer{}, err
	}
	pod, err := d.nodes.Agent(ctx, caller)
	if err != nil {
		return publish.Peer{}, err
	}
	return publish.Peer{
		Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount, PodName: caller.PodName, PodUID: caller.PodUID, Node: pod.Node,
	}, nil
}
