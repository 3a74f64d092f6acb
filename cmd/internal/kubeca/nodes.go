package kubeca

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/server"
)

const (
	// defaultPatience is how long a pod may be on its way into our cache. The
	// kubelet starts pods when it hears of them, which may be sooner than we do.
	defaultPatience = 2 * time.Second
	lookAgain       = 50 * time.Millisecond
)

// Pod is what has to be known about a pod.
type Pod struct {
	UID, Namespace, Name string
	ServiceAccount       string
	// Node is empty until the pod is scheduled.
	Node        string
	HostNetwork bool
	// Terminal pods have ended (phase Succeeded or Failed).
	Terminal bool
}

// Pods are the pods of the cluster, as a cache of them. Its methods are called
// concurrently and must not block.
type Pods interface {
	Pod(namespace, name string) (Pod, bool)
	PodsOnNode(node string) []Pod
}

// Account is a service account.
type Account struct{ Namespace, Name string }

// NodeAuthorizerConfig configures a NodeAuthorizer.
type NodeAuthorizerConfig struct {
	// Pods of the cluster. Required.
	Pods Pods
	// TrustDomain of the mesh. Required.
	TrustDomain identity.TrustDomain
	// Trusted are the service accounts of node agents. Required.
	Trusted []Account
	// Patience is how long to wait for a pod that the cache does not have yet;
	// 0 means 2 s, less than 0 not at all.
	Patience time.Duration
}

// NodeAuthorizer decides which identities an agent may have: those of the pods
// that run beside it on its node.
type NodeAuthorizer struct {
	cfg NodeAuthorizerConfig
}

// NewNodeAuthorizer makes a NodeAuthorizer.
func NewNodeAuthorizer(cfg NodeAuthorizerConfig) (*NodeAuthorizer, error) {
	if cfg.Pods == nil || cfg.TrustDomain.IsZero() || len(cfg.Trusted) == 0 {
		return nil, errors.New("make node authorizer: pods, trust domain and trusted accounts are required")
	}
	cfg.Patience = cmp.Or(cfg.Patience, defaultPatience)
	cfg.Trusted = slices.Clone(cfg.Trusted)
	return &NodeAuthorizer{cfg: cfg}, nil
}

// Authorize returns nil if the caller is a node agent in a live pod and a live
// pod with the identity is on the same node. The order of the checks is
// istiod's; beyond those, the trust domain has to be the mesh's, and pods that
// have ended or have the host's network do not count: no agent serves them.
func (a *NodeAuthorizer) Authorize(ctx context.Context, caller server.Caller, id identity.ID) error {
	if err := a.trusted(caller); err != nil {
		return err
	}
	if td := id.TrustDomain(); td != a.cfg.TrustDomain {
		return fmt.Errorf("%s is not of trust domain %s", id, a.cfg.TrustDomain)
	}
	return a.patiently(ctx, func() (bool, error) {
		agent, wait, err := a.agent(caller)
		if err != nil {
			return wait, err
		}
		if !a.runs(agent.Node, id) {
			return true, fmt.Errorf("no pod of %s/%s is on node %s", id.Namespace(), id.ServiceAccount(), agent.Node)
		}
		return false, nil
	})
}

// Agent returns the live pod of a caller who is a node agent, its node set.
func (a *NodeAuthorizer) Agent(ctx context.Context, caller server.Caller) (Pod, error) {
	if err := a.trusted(caller); err != nil {
		return Pod{}, err
	}
	var agent Pod
	err := a.patiently(ctx, func() (wait bool, err error) {
		agent, wait, err = a.agent(caller)
		return wait, err
	})
	return agent, err
}

func (a *NodeAuthorizer) trusted(caller server.Caller) error {
	if !slices.Contains(a.cfg.Trusted, Account{caller.Namespace, caller.ServiceAccount}) {
		return fmt.Errorf("%s/%s is not the account of a node agent", caller.Namespace, caller.ServiceAccount)
	}
	if caller.PodName == "" || caller.PodUID == "" {
		return fmt.Errorf("the token of %s/%s is not bound to a pod", caller.Namespace, caller.ServiceAccount)
	}
	return nil
}

// agent finds the caller's pod. wait says that the cache may be behind.
func (a *NodeAuthorizer) agent(caller server.Caller) (pod Pod, wait bool, err error) {
	pod, ok := a.cfg.Pods.Pod(caller.Namespace, caller.PodName)
	switch {
	case !ok:
		return Pod{}, true, fmt.Errorf("pod %s/%s is not known", caller.Namespace, caller.PodName)
	case pod.UID != caller.PodUID:
		return Pod{}, true, fmt.Errorf("pod %s/%s has UID %s, the token is for %s", caller.Namespace, caller.PodName, pod.UID, caller.PodUID)
	case pod.ServiceAccount != caller.ServiceAccount:
		return Pod{}, false, fmt.Errorf("pod %s/%s has service account %s, the token is for %s", caller.Namespace, caller.PodName, pod.ServiceAccount, caller.ServiceAccount)
	case pod.Terminal:
		return Pod{}, false, fmt.Errorf("pod %s/%s has ended", caller.Namespace, caller.PodName)
	case pod.Node == "":
		return Pod{}, true, fmt.Errorf("pod %s/%s is on no node", caller.Namespace, caller.PodName)
	case caller.Node != "" && caller.Node != pod.Node:
		return Pod{}, false, fmt.Errorf("pod %s/%s is on node %s, the token is for %s", caller.Namespace, caller.PodName, pod.Node, caller.Node)
	}
	return pod, false, nil
}

// runs reports whether a pod with the identity is on the node. Whether it is
// enrolled is not asked: the certificate has to be there before that.
func (a *NodeAuthorizer) runs(node string, id identity.ID) bool {
	return slices.ContainsFunc(a.cfg.Pods.PodsOnNode(node), func(p Pod) bool {
		return p.Namespace == id.Namespace() && p.ServiceAccount == id.ServiceAccount() &&
			p.Node == node && !p.Terminal && !p.HostNetwork
	})
}

// patiently repeats a check that fails because of what the cache does not have
// yet.
func (a *NodeAuthorizer) patiently(ctx context.Context, check func() (wait bool, err error)) error {
	wait, err := check()
	if err == nil || !wait || a.cfg.Patience < 0 {
		return err
	}
	patience := time.NewTimer(a.cfg.Patience)
	defer patience.Stop()
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return err
		case <-patience.C:
			return err
		case <-again.C:
		}
		if wait, err = check(); err == nil || !wait {
			return err
		}
	}
}
