package handoff

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// MaxAddresses is how many addresses a CNIPod may have. Pods have one or two; some
// chains of plugins report those of further interfaces.
const MaxAddresses = 32

// CNIPod is what the CNI plugin knows of the pod whose namespace has just been made.
type CNIPod struct {
	Namespace, Name string
	UID             string       // empty where the runtime does not say it
	Addresses       []netip.Addr // that the plugins before gave it; may be empty
}

// String returns "namespace/name".
func (p CNIPod) String() string { return p.Namespace + "/" + p.Name }

// Validate reports all faults: names as those of Pod, at most MaxAddresses addresses,
// each one valid, without a zone and not unspecified.
func (p CNIPod) Validate() error {
	errs := []error{validateName("pod name", p.Name), validateName("namespace", p.Namespace)}
	if p.UID != "" {
		errs = append(errs, validateUID(p.UID))
	}
	if len(p.Addresses) > MaxAddresses {
		errs = append(errs, fmt.Errorf("%d addresses are more than %d", len(p.Addresses), MaxAddresses))
	}
	for _, a := range p.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("address %q is not one of a pod", a))
			break
		}
	}
	return errors.Join(errs...)
}

// CNIHandler is a Handler that serves the CNI plugin's ADD. It is called
// concurrently; ctx ends with the server.
type CNIHandler interface {
	// CNIAdd decides whether a starting pod is to be enrolled, and enrols it. It
	// owns ns. It returns when the pod is enrolled (true), when it is found to stay
	// out (false), or with the reason why neither is so; the start of the pod then
	// fails and is tried again. Adding what is there already is no error.
	CNIAdd(ctx context.Context, pod CNIPod, ns *netns.NS) (enrolled bool, err error)
}

// CNIStateHandler is a Handler that serves the plugin's other operations. It is
// called concurrently; ctx ends with the server.
type CNIStateHandler interface {
	// CNIDel says that the runtime takes the pod's namespace away, after all of its
	// processes have ended. It owns ns, which is nil where the namespace is gone.
	// Whoever holds the pod must give up the namespace, and must not touch another
	// namespace of the same pod: a pod whose sandbox is made anew keeps its UID.
	// The plugin does not wait for long and ignores errors.
	CNIDel(ctx context.Context, pod CNIPod, ns *netns.NS) error
	// CNICheck reports whether the pod is enrolled, or an error if it is not what
	// it should be. It owns ns.
	CNICheck(ctx context.Context, pod CNIPod, ns *netns.NS) (enrolled bool, err error)
	// CNIStatus returns why pods cannot be enrolled at the moment, or nil.
	CNIStatus(ctx context.Context) error
}

// cniPod is what a cni- request names.
func (r request) cniPod() CNIPod {
	return CNIPod{Namespace: r.Pod.Namespace, Name: r.Pod.Name, UID: r.Pod.UID, Addresses: r.Addresses}
}

// wants reports an error unless got descriptors are what the request goes with.
func (r request) wants(got int) error {
	switch r.Op {
	case opAdd, opCNIAdd, opCNICheck:
		if got != 1 {
			return fmt.Errorf("%s takes one descriptor and got %d", r.Op, got)
		}
	case opCNIDel:
		if got > 1 {
			return fmt.Errorf("%s takes at most one descriptor and got %d", r.Op, got)
		}
	default:
		if got > 0 {
			return fmt.Errorf("%s takes no descriptor and got %d", r.Op, got)
		}
	}
	return nil
}

// answerCNI does what the CNI plugin asks. It owns fds, whose number is right.
func (s *Server) answerCNI(ctx context.Context, r request, fds []int) []response {
	add, adds := s.cfg.Handler.(CNIHandler)
	state, states := s.cfg.Handler.(CNIStateHandler)
	if r.Op == opCNIAdd && !adds || r.Op != opCNIAdd && !states {
		closeAll(fds)
		return failure(fmt.Errorf("%s is not served by this agent", r.Op))
	}
	if r.Op == opCNIStatus {
		return failure(state.CNIStatus(ctx))
	}
	var ns *netns.NS
	if len(fds) == 1 {
		var err error
		if ns, err = netns.FromFD(fds[0]); err != nil {
			return failure(err)
		}
	}
	var (
		enrolled bool
		err      error
	)
	switch r.Op {
	case opCNIDel:
		return failure(state.CNIDel(ctx, r.cniPod(), ns))
	case opCNIAdd:
		enrolled, err = add.CNIAdd(ctx, r.cniPod(), ns)
	default:
		enrolled, err = state.CNICheck(ctx, r.cniPod(), ns)
	}
	if err != nil {
		return failure(err)
	}
	return []response{{Version: Version, Enrolled: &enrolled}}
}

// CNIAdd hands over the namespace of a starting pod, which stays the caller's too,
// and waits until the agent has enrolled the pod (true) or has found that it stays
// out (false). A *RemoteError says why neither is so.
func (c *Client) CNIAdd(ctx context.Context, pod CNIPod, ns *netns.NS) (enrolled bool, err error) {
	if enrolled, err = c.cni(ctx, opCNIAdd, pod, ns); err != nil {
		return false, fmt.Errorf("hand over pod %s: %w", pod, err)
	}
	return enrolled, nil
}

// CNICheck asks whether the pod is enrolled. A *RemoteError says what is wrong with it.
func (c *Client) CNICheck(ctx context.Context, pod CNIPod, ns *netns.NS) (enrolled bool, err error) {
	if enrolled, err = c.cni(ctx, opCNICheck, pod, ns); err != nil {
		return false, fmt.Errorf("check pod %s: %w", pod, err)
	}
	return enrolled, nil
}

func (c *Client) cni(ctx context.Context, op string, pod CNIPod, ns *netns.NS) (enrolled bool, err error) {
	r, err := cniRequest(op, pod)
	if err != nil {
		return false, err
	}
	var all response
	err = ns.Control(func(fd int) error {
		var err error
		all, err = c.do(ctx, r, fd)
		return err
	})
	if err != nil {
		return false, err
	}
	if all.Enrolled == nil {
		return false, errors.New("agent's answer does not say whether the pod is enrolled")
	}
	return *all.Enrolled, nil
}

// CNIDel says that the namespace of a pod goes away; ns is nil if it is gone already,
// and stays the caller's otherwise.
func (c *Client) CNIDel(ctx context.Context, pod CNIPod, ns *netns.NS) error {
	r, err := cniRequest(opCNIDel, pod)
	if err == nil && ns == nil {
		_, err = c.do(ctx, r)
	} else if err == nil {
		err = ns.Control(func(fd int) error {
			_, err := c.do(ctx, r, fd)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("take back pod %s: %w", pod, err)
	}
	return nil
}

// CNIStatus asks whether pods can be enrolled; a *RemoteError says why not.
func (c *Client) CNIStatus(ctx context.Context) error {
	if _, err := c.do(ctx, request{Version: Version, Op: opCNIStatus}); err != nil {
		return fmt.Errorf("ask agent's state: %w", err)
	}
	return nil
}

func cniRequest(op string, pod CNIPod) (request, error) {
	if err := pod.Validate(); err != nil {
		return request{}, err
	}
	return request{
		Version: Version, Op: op, Addresses: pod.Addresses,
		Pod: &Pod{UID: pod.UID, Name: pod.Name, Namespace: pod.Namespace},
	}, nil
}
