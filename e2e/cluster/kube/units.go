package kube

import (
	"path/filepath"

	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

// spec is the machine of a node.
func (c *Cluster) spec(p place) machine.Spec {
	s := machine.Spec{
		Name: p.name, Dir: c.nodeDir(p.name),
		Binds: []string{c.cfg.Dir},
		Volumes: map[string]string{
			"/var/lib/kubelet": "kubelet", "/var/lib/containerd": "containerd",
		},
		Files: map[string]string{
			"/etc/containerd/config.toml":  containerdConfig(),
			"/etc/kubernetes/kubelet.yaml": kubeletConfig(p, c.pkiDir()),
			"/etc/kubernetes/proxy.yaml":   proxyConfig(p, c.pkiDir()+"/kube-proxy.kubeconfig"),
			"/etc/resolv.conf":             "nameserver " + dnsAddr + "\n",
			"/etc/hosts":                   "127.0.0.1 localhost\n::1 localhost\n" + p.addr() + " " + p.name + "\n",
		},
	}
	// What a kubelet insists on; it would set it.
	s.Settings = map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	}
	if c.cfg.Binaries != "" && !within(c.cfg.Dir, c.cfg.Binaries) {
		s.Binds = append(s.Binds, c.cfg.Binaries)
	}
	if p.control() {
		s.Volumes["/var/lib/etcd"] = "etcd"
		s.Units = append(s.Units, c.controlUnits(p)...)
	}
	s.Units = append(s.Units, c.nodeUnits(p)...)
	return s
}

func (c *Cluster) binary(name string) string { return filepath.Join(c.cfg.Binaries, name) }

func (c *Cluster) controlUnits(p place) []machine.Unit {
	pki := c.pkiDir()
	const etcd = "http://127.0.0.1:2379"
	return []machine.Unit{
		{Name: "etcd", Env: []string{"GOMAXPROCS=1"}, Args: []string{
			"/usr/bin/etcd", "--data-dir=/var/lib/etcd/data", "--unsafe-no-fsync", "--log-level=error", "--name=" + p.name,
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=" + p.name + "=http://127.0.0.1:2380",
		}},
		{Name: "kube-apiserver", Args: []string{
			c.binary("kube-apiserver"), "--etcd-servers=" + etcd, "--advertise-address=" + p.addr(), "--secure-port=" + apiPort,
			"--tls-cert-file=" + pki + "/apiserver.crt", "--tls-private-key-file=" + pki + "/apiserver.key", "--client-ca-file=" + pki + "/ca.crt",
			"--kubelet-client-certificate=" + pki + "/admin.crt", "--kubelet-client-key=" + pki + "/admin.key",
			"--kubelet-certificate-authority=" + pki + "/ca.crt", "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + pki + "/sa.key",
			"--service-account-signing-key-file=" + pki + "/sa.key",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--service-cluster-ip-range=" + serviceNet, "--profiling=false", "--endpoint-reconciler-type=lease",
		}},
		{Name: "kube-controller-manager", Args: []string{
			c.binary("kube-controller-manager"), "--kubeconfig=" + pki + "/kube-controller-manager.kubeconfig", "--leader-elect=false",
			"--service-account-private-key-file=" + pki + "/sa.key", "--root-ca-file=" + pki + "/ca.crt", "--use-service-account-credentials=true",
			"--cluster-signing-cert-file=" + pki + "/ca.crt", "--cluster-signing-key-file=" + pki + "/ca.key",
			"--cluster-cidr=" + podNet, "--service-cluster-ip-range=" + serviceNet, "--allocate-node-cidrs=false",
			"--node-monitor-grace-period=20s",
		}},
		{Name: "kube-scheduler", Args: []string{c.binary("kube-scheduler"), "--kubeconfig=" + pki + "/kube-scheduler.kubeconfig", "--leader-elect=false"}},
	}
}

func (c *Cluster) nodeUnits(p place) []machine.Unit {
	return []machine.Unit{
		{Name: "containerd", Args: []string{"/usr/bin/containerd", "--config=/etc/containerd/config.toml", "--log-level=warn"}},
		{Name: "kubelet", Args: []string{
			c.binary("kubelet"), "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=" + c.pkiDir() + "/kubelet-" + p.name + ".kubeconfig",
			"--hostname-override=" + p.name, "--node-ip=" + p.addr() + "," + p.addr6(), "--root-dir=/var/lib/kubelet",
			"--node-labels=topology.kubernetes.io/region=here,topology.kubernetes.io/zone=zone-" + p.name,
		}},
		{Name: "kube-proxy", Args: []string{c.binary("kube-proxy"), "--config=/etc/kubernetes/proxy.yaml"}},
	}
}
