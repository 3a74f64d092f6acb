package kube

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

// containerdConfig is for one node; every path is the node's own. What is switched off is what a machine without systemd,
// AppArmor or huge pages does not have.
func containerdConfig() string {
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`, pauseImage)
}

func cniConfig(p place) string {
	return fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "testnet",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam",
       "ranges": [[{"subnet": %q}], [{"subnet": %q}]],
       "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, p.pods(), p.pods6())
}

func kubeletConfig(p place, pki string) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[1]s/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: %[1]s/kubelet-%[2]s.crt
tlsPrivateKeyFile: %[1]s/kubelet-%[2]s.key
clusterDomain: %[3]s
clusterDNS: [%[4]s]
resolvConf: /etc/resolv.conf
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: %[5]s
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
featureGates: {KubeletInUserNamespace: true}
evictionHard: {memory.available: 1Mi, nodefs.available: "0%%", imagefs.available: "0%%", nodefs.inodesFree: "0%%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
maxPods: 200
serializeImagePulls: false
registerNode: true
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
configMapAndSecretChangeDetectionStrategy: Watch
shutdownGracePeriod: 0s
`, pki, p.name, clusterName, dnsAddr, machine.Cgroup(p.name))
}

func proxyConfig(p place, kubeconfig string) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: %s}
clusterCIDR: %s
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 0s, syncPeriod: 30s}
`, kubeconfig, podNet, p.name)
}

// writeKubeconfig writes a kubeconfig file with the user's certificate inside.
func (p *pki) writeKubeconfig(file, user string) error {
	var data [3]string
	for i, name := range []string{"ca.crt", user + ".crt", user + ".key"} {
		text, err := os.ReadFile(p.path(name))
		if err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
		data[i] = base64.StdEncoding.EncodeToString(text)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: culvert-e2e
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: %s
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: culvert-e2e
  context: {cluster: culvert-e2e, user: %s}
current-context: culvert-e2e
`, apiServer(), data[0], user, data[1], data[2], user)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o600)
}
