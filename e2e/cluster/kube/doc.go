// Package kube runs a real Kubernetes of two nodes on this machine, for tests: etcd, containerd, runc and the CNI plugins of
// the distribution, Kubernetes' own programs built from its module, each node a [machine.Machine].
//
//	this machine          node1 (control plane)              node2
//	culvert-h0 ───────── host0                               containerd, kubelet,
//	198.18.251.1         etcd, kube-apiserver, …             kube-proxy
//	                     containerd, kubelet, kube-proxy
//	                     wire0 198.18.250.1 ──────────────── wire0 198.18.250.2
//	                     cni0  10.244.1.1/24                 cni0  10.244.2.1/24
//
// Addresses are dual stack. Of this machine only one link with its routes is added (culvert-h0), and they go when node1
// goes. Images come from archives ([Cluster.Import]); there is no registry. The cluster's DNS server runs as pods.
//
// Everything is below one directory: [Up] finds there what an earlier one built and repairs or cleans it, [Down] removes it
// all, also after the starter was killed in the middle. Calls must not run at the same time. It needs root.
package kube
