// Package procns finds the network namespaces of pods that run already, through the
// processes in a /proc directory. It is for pods whose start the CNI plugin did not
// see: those older than the agent, and those labelled later.
//
// A process belongs to the pod whose UID is in its control group's path, which the
// kubelet makes and a container cannot leave. That is not enough to trust the
// namespace that the process happens to be in: a runtime's helper passes through
// several, a privileged container may enter another's. So the namespace must also
// differ from the host's, and have one of the pod's addresses; of several that do, the
// one with the oldest process counts, because the sandbox is there before whatever
// runs in it.
//
// Reading the namespace of another user's process needs CAP_SYS_PTRACE, entering it
// CAP_SYS_ADMIN. Everything that is read of one process is read through one descriptor
// of its directory, so a reused process number mixes nothing up.
//
// The package keeps nothing between two searches: what it returns belongs to the
// caller, and what it looked at is closed, so the namespace of a dead pod is never
// kept alive by it. A Finder is safe for concurrent use.
package procns
