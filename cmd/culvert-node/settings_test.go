package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// files makes the files that good settings name, in a directory of its own that becomes the current one.
func files(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, name := range []string{"mesh.yaml", "pods.yaml", "ca.pem", "ca-key.pem", "root.pem", "token"} {
		if err := os.WriteFile(filepath.Clean(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	nodeMode  = "--workloads=mesh.yaml --pods=pods.yaml "
	dedicated = "--mode=dedicated --workload=default/a/sa-a --workloads=mesh.yaml "
	fileCA    = "--ca-cert=ca.pem --ca-key=ca-key.pem "

	kubernetesMode = "--kubernetes --node=n1 --workloads=mesh.yaml " + fileCA
)

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		faults     []string // parts of the message, none for good settings
	}{
		{"node", nodeMode + fileCA, nil},
		{"dedicated", dedicated + fileCA, nil},
		{"node_with_SPIRE", nodeMode + "--spire-admin-socket=unix:///run/admin.sock", nil},
		{"dedicated_with_SPIRE", dedicated + "--spiffe-endpoint-socket=unix:///run/agent.sock", nil},
		{"discovery_and_CA_server", "--xds-address=istiod:15012 --xds-root-ca=root.pem --handoff-socket=h.sock --ca-address=istiod:15012 --ca-root-ca=root.pem --token-file=token", nil},
		{"ztunnels_word_for_node", "--mode=shared " + nodeMode + fileCA, nil},
		{"same_node", nodeMode + fileCA + "--same-node=short", nil},
		{"same_node_without_evaluation", nodeMode + fileCA + "--same-node=short --network-policies=false", []string{"--same-node: short passes by"}},
		{"same_node_by_somebodys_word", nodeMode + fileCA + "--same-node=short --network-policies=none", nil},
		{"same_node_of_a_server_that_may_be_any", "--xds-address=istiod:15012 --xds-root-ca=root.pem --handoff-socket=h.sock --ca-address=istiod:15012 --ca-root-ca=root.pem --token-file=token --same-node=short", []string{"--same-node: short passes by"}},
		{"same_node_of_a_server_with_policies", "--xds-address=istiod:15012 --xds-root-ca=root.pem --handoff-socket=h.sock --ca-address=istiod:15012 --ca-root-ca=root.pem --token-file=token --same-node=short --network-policies=true", nil},
		{"unknown_network_policies", nodeMode + fileCA + "--network-policies=maybe", []string{"--network-policies:"}},
		{"unknown_same_node", nodeMode + fileCA + "--same-node=plain", []string{"--same-node:"}},
		{"nothing", "", []string{"--workloads:", "--pods:", "--ca-cert:"}},
		{"all_faults_at_once", "--mode=sidecar --ca-cert=none.pem --loops=0", []string{`--mode: "sidecar"`, `--ca-cert: "none.pem": no such file`, "--loops:"}},
		{"unknown_flag", nodeMode + fileCA + "--workload-file=x", []string{"--workload-file: unknown flag"}},
		{"key_without_certificate", nodeMode + "--ca-key=ca-key.pem", []string{"go together"}},
		{"two_sources_of_certificates", nodeMode + fileCA + "--ca-address=istiod:15012 --ca-root-ca=root.pem", []string{"more than one source"}},
		{"CA_server_without_roots", nodeMode + "--ca-address=istiod:15012", []string{"--ca-root-ca"}},
		{"discovery_without_roots", "--xds-address=istiod:15012 --pods=pods.yaml " + fileCA, []string{"--xds-address: needs --xds-root-ca"}},
		{"discovery_without_port", "--xds-address=istiod --xds-root-ca=SYSTEM --pods=pods.yaml " + fileCA, []string{`--xds-address: "istiod": not of the form host:port`}},
		{"discovery_with_a_word_for_a_port", "--xds-address=istiod:grpc --xds-root-ca=SYSTEM --pods=pods.yaml " + fileCA, []string{`--xds-address: "istiod:grpc": not a port`}},
		{"discovery_as_ztunnel_has_it", "--xds-address=https://istiod.istio-system.svc:15012/ --xds-root-ca=SYSTEM --pods=pods.yaml " + fileCA, nil},
		{"CA_server_without_port", nodeMode + "--ca-address=:15012 --ca-root-ca=SYSTEM", []string{`--ca-address: ":15012": not of the form host:port`}},
		{"SPIRE_admin_for_one_workload", dedicated + "--spire-admin-socket=unix:///run/admin.sock", []string{"--spire-admin-socket is only for --mode=node"}},
		{"two_sockets_of_SPIRE", nodeMode + "--spire-admin-socket=unix:///run/admin.sock --ca-address=istiod:15012 --ca-root-ca=SYSTEM", []string{"more than one source of certificates"}},
		{"SPIRE_for_a_node", nodeMode + "--spiffe-endpoint-socket=unix:///run/agent.sock", []string{"only for --mode=dedicated"}},
		{"dedicated_without_workload", "--mode=dedicated --workloads=mesh.yaml " + fileCA, []string{"--workload: required"}},
		{"malformed_workload", "--mode=dedicated --workload=a/b --workloads=mesh.yaml " + fileCA, []string{"want namespace/name/service-account"}},
		{"pods_in_dedicated_mode", dedicated + "--pods=pods.yaml " + fileCA, []string{"only for --mode=node"}},
		{"kubernetes", kubernetesMode, nil},
		{"kubernetes_with_plugin", kubernetesMode + "--cni-bin-dir=/host/bin --cni-net-dir=/host/net.d --exclude-namespaces=kube-system,other --forbid-carve-outs=false --leave-timeout=10m --host-addresses=192.0.2.1", nil},
		{"kubernetes_selectors", kubernetesMode + "--enrol-selectors=mesh=yes;team!=ops|;mesh", nil},
		{"bad_selectors", kubernetesMode + "--enrol-selectors=mesh=yes=no", []string{"--enrol-selectors:"}},
		{"kubernetes_without_node", "--kubernetes --workloads=mesh.yaml " + fileCA, []string{"--kubernetes: needs --node"}},
		{"kubernetes_dedicated", dedicated + fileCA + "--kubernetes", []string{"--kubernetes: only for --mode=node"}},
		{"kubernetes_and_pods", kubernetesMode + "--pods=pods.yaml", []string{"not both"}},
		{"half_a_plugin", kubernetesMode + "--cni-bin-dir=/host/bin", []string{"go together"}},
		{"plugin_from_outside", kubernetesMode + "--kubeconfig=token --cni-bin-dir=/host/bin --cni-net-dir=/host/net.d", []string{"from inside the cluster"}},
		{"admin_for_everybody", nodeMode + fileCA + "--admin-address=0.0.0.0:15000", []string{"loopback"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files(t)
			_, _, err := readSettings(strings.Fields(tt.args))
			if len(tt.faults) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("faulty settings were taken")
			}
			for _, part := range tt.faults {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the message does not say %q:\n%v", part, err)
				}
			}
		})
	}
}

// TestDefaultLoops: they follow from what the process may use, which a limit of its control group makes less than the machine
// has; with more, their threads would have it throttled.
func TestDefaultLoops(t *testing.T) {
	files(t)
	for _, tt := range []struct{ processors, loops int }{{1, 1}, {4, 1}, {12, 3}} {
		before := runtime.GOMAXPROCS(tt.processors)
		s, _, err := readSettings(strings.Fields(nodeMode + fileCA))
		runtime.GOMAXPROCS(before)
		if err != nil || s.loops != tt.loops {
			t.Errorf("%d loops for %d processors, want %d: %v", s.loops, tt.processors, tt.loops, err)
		}
	}
}

// TestNothingExcluded: the plugin leaves out no namespace where the agent leaves out none.
func TestNothingExcluded(t *testing.T) {
	files(t)
	s, _, err := readSettings(strings.Fields(kubernetesMode + "--exclude-namespaces="))
	if err != nil || len(s.kubernetes.exclude) > 0 {
		t.Fatalf("the agent excludes %q, %v", s.kubernetes.exclude, err)
	}
	text, err := pluginConfig(s).JSON()
	if err != nil || !strings.Contains(string(text), `"excludeNamespaces":[]`) {
		t.Errorf("the plugin is told %s, %v", text, err)
	}
}

// The names of ztunnel's environment variables work; flags win over them.
func TestEnvironment(t *testing.T) {
	files(t)
	for k, v := range map[string]string{
		"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "default/a/sa-a", "LOCAL_XDS_PATH": "mesh.yaml", "NODE_NAME": "node-a",
		"CONNECTION_TERMINATION_DEADLINE": "7s", "NETWORK": "net-1",
	} {
		t.Setenv(k, v)
	}
	s, _, err := readSettings(strings.Fields(fileCA + "--node=node-b"))
	if err != nil {
		t.Fatal(err)
	}
	if s.mode != modeDedicated || s.workload.String() != "default/a/sa-a" || s.node != "node-b" || s.drain != 7*time.Second || s.network != "net-1" {
		t.Errorf("settings are %+v", s)
	}
}
