package hostrules

import (
	"errors"
	"net/netip"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Kubelet is how the kubelet's sockets are told from those of others.
type Kubelet struct {
	PID  int
	Comm string // the process's name: kubelet, kubelite, k3s-server, …
	UID  uint32
	// Cgroup is the path in cgroup v2, from the root of the kubelet's own cgroup
	// namespace, "/" for that root itself. Empty when the system has no cgroup v2.
	Cgroup string
	// CgroupID is what the kernel calls that cgroup; zero when Cgroup is empty.
	CgroupID uint64
	// Root is false when the kubelet's cgroup namespace is not the system's first, as in
	// a node that is a container: how deep its root lies is unknown then.
	Root bool
	// procRoot is where it was found.
	procRoot string
}

// FindKubelet finds the kubelet whose network namespace is host among the processes of
// procRoot ("/proc", or where the host's is mounted). Needs CAP_SYS_PTRACE when the
// kubelet may do more than the caller, and CAP_SYS_ADMIN for its cgroup.
//
// A process may call itself what it likes, so those of other network namespaces and
// those in a pod's cgroup are no candidates; of several, those of root win; when there
// are still different ones, that is an error.
func FindKubelet(procRoot string, host *netns.NS) (Kubelet, error) {
	return Kubelet{}, errors.ErrUnsupported
}

// NodeAddresses returns the addresses that a process in host calls its pods from: all
// of its interfaces except loopback, link-local and those of interfaces that only hold
// the virtual addresses of Services. Sorted.
func NodeAddresses(host *netns.NS) ([]netip.Addr, error) { return nil, errors.ErrUnsupported }
