// Package machine makes a small computer of this one: a process tree with its own PID, mount, network, UTS and IPC
// namespaces, its own cgroups and a root file system that is the machine's own with a private layer on top.
//
//	this machine                      machine "node1"
//	/            ── lower layer ───►  /             every change stays in DIR/node1/upper
//	DIR/node1/x  ── bind ──────────►  /var/lib/x    for what cannot live on an overlay
//	                                  /run, /tmp    empty at each start, as after a boot
//	cgroups /culvert-cluster-node1    kubelet, containerd, … and what they start
//
// Its first process supervises the units of its [Spec] and adopts orphans. When that process dies, the kernel kills
// the whole tree, and with the last process every mount, interface, route and rule of the machine is gone: nothing has to
// be undone step by step, however a machine ends. Only its directory and its cgroups stay; [Remove] and [Sweep] take them.
//
// The package knows nothing of Kubernetes. A program that starts machines calls [Reexec] first of all. Calls about one
// machine must not run at the same time; different machines are independent. It needs root.
package machine
