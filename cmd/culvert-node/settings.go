package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/conf"
	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/cmd/internal/launch"
	"github.com/culvert-mesh/culvert/workload/egress"
)

type mode string

const (
	modeNode      mode = "node"      // many pods, each in its own network namespace
	modeDedicated mode = "dedicated" // one workload, in the namespace that the agent runs in
)

// toggle is a choice that may be left to the machine.
type toggle string

const (
	auto toggle = "auto"
	on   toggle = "true"
	off  toggle = "false"
)

// sameNode is how bytes go between two pods of one node.
type sameNode string

const (
	encrypt sameNode = "encrypt" // in a tunnel, as between nodes
	short   sameNode = "short"   // from one application to the other
)

// networkPolicies says who evaluates Kubernetes' NetworkPolicies.
type networkPolicies string

const (
	networkAuto networkPolicies = "auto"  // the agent, where it has them from a file
	networkOn   networkPolicies = "true"  // the agent
	networkOff  networkPolicies = "false" // the CNI alone
	networkNone networkPolicies = "none"  // nobody: the administrator's word that none selects pods of the mesh
)

// workloadName is namespace/name/service account.
type workloadName struct{ namespace, name, serviceAccount string }

// String returns the form in which it is given.
func (w workloadName) String() string {
	if w == (workloadName{}) {
		return ""
	}
	return w.namespace + "/" + w.name + "/" + w.serviceAccount
}

func parseWorkloadName(text string) (workloadName, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return workloadName{}, errors.New("want namespace/name/service-account")
	}
	return workloadName{parts[0], parts[1], parts[2]}, nil
}

// settings is everything that flags and environment decide.
type settings struct {
	common       launch.Common
	mode         mode
	pods         string
	workload     workloadName
	capture      bool
	handoff      string
	leave        bool
	workloads    string
	xdsAddress   string
	xdsRootCA    string
	xdsHostname  string
	caAddress    string
	caRootCA     string
	caHostname   string
	tokenFile    string
	caCert       string
	caKey        string
	spire        string
	spireAdmin   string
	crl          string
	secretTTL    time.Duration
	node         string
	network      string
	cluster      string
	domain       string
	trustDomain  string
	dns          bool
	resolvConf   string
	ipv6         bool
	originalSrc  toggle
	outbound     egress.Mode
	sameNode     sameNode
	networkPol   networkPolicies
	loops        int
	drain        time.Duration
	poolIdle     time.Duration
	poolStreams  int
	metrics      netip.AddrPort
	ready        netip.AddrPort
	accessLog    toggle
	podName      string
	podNamespace string
	serviceAcct  string
	instanceIP   string

	kubernetes kubernetesSettings
}

// The names of ztunnel's variables are kept, so that a deployment can change the image and nothing else.
func readSettings(args []string) (*settings, *conf.Set, error) {
	s := &settings{
		mode: modeNode, secretTTL: 24 * time.Hour, cluster: "Kubernetes", domain: "cluster.local", trustDomain: "cluster.local",
		dns: true, ipv6: true, originalSrc: auto, sameNode: encrypt, networkPol: networkAuto, loops: max(1, runtime.GOMAXPROCS(0)/4), drain: 5 * time.Second, poolIdle: 5 * time.Minute,
		metrics: netip.MustParseAddrPort("[::]:15020"), ready: netip.MustParseAddrPort("[::]:15021"),
		common: launch.Defaults(), accessLog: on, kubernetes: kubernetesDefaults(),
	}
	set := conf.New("culvert-node", os.LookupEnv)
	s.declareWhat(set)
	s.declareIdentity(set)
	s.declareHow(set)
	s.kubernetes.declare(set)
	s.common.Declare(set)
	s.check(set)
	if err := set.Parse(args); err != nil {
		return nil, set, err
	}
	if s.kubernetes.on && s.handoff == "" {
		s.handoff = filepath.Join(s.kubernetes.runDir, "agent", "handoff.sock")
	}
	return s, set, nil
}

func (s *settings) declareWhat(set *conf.Set) {
	conf.Add(set, &s.mode, parseMode, conf.Option{Flag: "mode", Env: []string{"CULVERT_MODE", "PROXY_MODE"}, Usage: "node: serve many pods; dedicated: serve the namespace that this runs in"})
	conf.Add(set, &s.pods, conf.File, conf.Option{Flag: "pods", Usage: "YAML list of pods {uid, name, namespace, serviceAccount, netns: path} to serve in node mode"})
	conf.Add(set, &s.handoff, conf.String, conf.Option{Flag: "handoff-socket", Env: []string{"CULVERT_HANDOFF_SOCKET"}, Usage: "unix socket on which pods are handed over in node mode"})
	conf.Add(set, &s.workload, parseWorkloadName, conf.Option{Flag: "workload", Env: []string{"PROXY_WORKLOAD_INFO"}, Usage: "namespace/name/service-account of the workload in dedicated mode"})
	conf.Add(set, &s.capture, conf.Bool, conf.Option{Flag: "capture", Usage: "apply the redirect rules in dedicated mode"})
	conf.Add(set, &s.leave, conf.Bool, conf.Option{Flag: "remove-rules-on-exit", Usage: "remove the redirect rules when stopped; pods leave the mesh then instead of being refused"})
	conf.Add(set, &s.workloads, conf.File, conf.Option{Flag: "workloads", Env: []string{"LOCAL_XDS_PATH"}, Usage: "YAML file of workloads, services and policies, watched for changes"})
	conf.Add(set, &s.xdsAddress, parseServer, conf.Option{Flag: "xds-address", Env: []string{"XDS_ADDRESS"}, Usage: "discovery server, host:port"})
	conf.Add(set, &s.xdsRootCA, conf.String, conf.Option{Flag: "xds-root-ca", Env: []string{"XDS_ROOT_CA"}, Usage: "roots of the discovery server: file, PEM or SYSTEM"})
	conf.Add(set, &s.xdsHostname, conf.String, conf.Option{Flag: "xds-hostname", Env: []string{"ALT_XDS_HOSTNAME"}, Usage: "name in the discovery server's certificate, if not the host of its address"})
	conf.Add(set, &s.node, conf.String, conf.Option{Flag: "node", Env: []string{"NODE_NAME"}, Usage: "name of this node"})
	conf.Add(set, &s.network, conf.String, conf.Option{Flag: "network", Env: []string{"NETWORK"}, Usage: "name of the network that this node is in"})
	conf.Add(set, &s.cluster, conf.String, conf.Option{Flag: "cluster", Env: []string{"ISTIO_META_CLUSTER_ID", "CLUSTER_ID"}, Usage: "name of this cluster"})
	conf.Add(set, &s.domain, conf.String, conf.Option{Flag: "cluster-domain", Env: []string{"CLUSTER_DOMAIN"}, Usage: "DNS suffix of the cluster"})
	conf.Add(set, &s.podName, conf.String, conf.Option{Flag: "pod-name", Env: []string{"POD_NAME"}, Usage: "name of the agent's own pod; with its namespace and service account, its ports are served in HBONE too"})
	conf.Add(set, &s.podNamespace, conf.String, conf.Option{Flag: "pod-namespace", Env: []string{"POD_NAMESPACE"}, Usage: "namespace of the agent's own pod"})
	conf.Add(set, &s.serviceAcct, conf.String, conf.Option{Flag: "service-account", Env: []string{"SERVICE_ACCOUNT"}, Usage: "service account of the agent's own pod"})
	conf.Add(set, &s.instanceIP, conf.String, conf.Option{Flag: "instance-ip", Env: []string{"INSTANCE_IP"}, Usage: "address of the agent's own pod, for discovery"})
}

func (s *settings) declareIdentity(set *conf.Set) {
	conf.Add(set, &s.caCert, conf.File, conf.Option{Flag: "ca-cert", Usage: "certificate of an authority in a file (culvert ca init)"})
	conf.Add(set, &s.caKey, conf.File, conf.Option{Flag: "ca-key", Usage: "its private key"})
	conf.Add(set, &s.caAddress, parseServer, conf.Option{Flag: "ca-address", Env: []string{"CA_ADDRESS"}, Usage: "server of the Istio certificate service, host:port"})
	conf.Add(set, &s.caRootCA, conf.String, conf.Option{Flag: "ca-root-ca", Env: []string{"CA_ROOT_CA"}, Usage: "roots of the certificate server: file, PEM or SYSTEM"})
	conf.Add(set, &s.caHostname, conf.String, conf.Option{Flag: "ca-hostname", Env: []string{"ALT_CA_HOSTNAME"}, Usage: "name in the certificate server's certificate, if not the host of its address"})
	conf.Add(set, &s.tokenFile, conf.File, conf.Option{Flag: "token-file", Env: []string{"AUTH_TOKEN"}, Usage: "bearer token for discovery and certificates, read for each call"})
	conf.Add(set, &s.spire, conf.String, conf.Option{Flag: "spiffe-endpoint-socket", Env: []string{"SPIFFE_ENDPOINT_SOCKET"}, Usage: "SPIFFE Workload API in dedicated mode, unix:///path"})
	conf.Add(set, &s.spireAdmin, conf.String, conf.Option{Flag: "spire-admin-socket", Env: []string{"CULVERT_SPIRE_ADMIN_SOCKET"}, Usage: "admin socket of SPIRE's agent, unix:///path, whose Delegated Identity API gives the certificates of the node's pods; this agent must be among its authorized_delegates"})
	conf.Add(set, &s.trustDomain, conf.String, conf.Option{Flag: "trust-domain", Env: []string{"TRUST_DOMAIN"}, Usage: "trust domain of workloads that name none"})
	conf.Add(set, &s.secretTTL, conf.Duration(10*time.Second, 90*24*time.Hour), conf.Option{Flag: "secret-ttl", Env: []string{"SECRET_TTL"}, Usage: "validity of the certificates to ask for"})
	conf.Add(set, &s.crl, conf.String, conf.Option{Flag: "crl", Env: []string{"CRL_PATH"}, Usage: "file of certificate revocation lists, watched for changes"})
}

func (s *settings) declareHow(set *conf.Set) {
	conf.Add(set, &s.dns, conf.Bool, conf.Option{Flag: "dns", Env: []string{"ISTIO_META_DNS_CAPTURE"}, Usage: "capture DNS and answer for services of the mesh"})
	conf.Add(set, &s.resolvConf, conf.File, conf.Option{Flag: "resolv-conf", Usage: "servers for forwarded questions whose own is not known, and for host names of ServiceEntries; default /etc/resolv.conf"})
	conf.Add(set, &s.ipv6, conf.Bool, conf.Option{Flag: "ipv6", Env: []string{"IPV6_ENABLED"}, Usage: "capture IPv6 too; false: it passes uncaptured, past all policies: only where there is no IPv6"})
	conf.Add(set, &s.originalSrc, conf.OneOf(auto, on, off), conf.Option{Flag: "original-source", Env: []string{"ENABLE_ORIG_SRC"}, Usage: "let applications see the client's own address: true, false or auto"})
	conf.Add(set, &s.outbound, egress.ParseMode, conf.Option{Flag: "outbound-traffic-policy", Env: []string{"CULVERT_OUTBOUND_TRAFFIC_POLICY"}, Usage: "what becomes of connections to destinations that the registry does not have: ALLOW_ANY: they pass through; REGISTRY_ONLY: they are refused. A namespace's annotation " + enrol.AnnotationOutbound + " goes before"})
	conf.Add(set, &s.sameNode, conf.OneOf(encrypt, short), conf.Option{Flag: "same-node", Env: []string{"CULVERT_SAME_NODE"}, Usage: "between pods of this node: encrypt: a tunnel as between nodes; short: from application to application after the same checks, in clear inside the agent. What goes the short way passes by the CNI's NetworkPolicy: it needs --network-policies"})
	conf.Add(set, &s.networkPol, conf.OneOf(networkAuto, networkOn, networkOff, networkNone), conf.Option{Flag: "network-policies", Env: []string{"CULVERT_NETWORK_POLICIES"}, Usage: "true: evaluate Kubernetes' NetworkPolicies, by the real peer and the port inside of the tunnel; Culvert's controller sends them, istiod does not; false: do not; none: neither, because there are none that select pods of the mesh; auto: true with --workloads, else false"})
	conf.Add(set, &s.loops, conf.Int(1, 256), conf.Option{Flag: "loops", Env: []string{"CULVERT_LOOPS"}, Usage: "event loops (threads) that move bytes"})
	conf.Add(set, &s.drain, conf.Duration(0, 24*time.Hour), conf.Option{Flag: "drain-timeout", Env: []string{"CONNECTION_TERMINATION_DEADLINE"}, Usage: "how long connections may go on after the signal to stop"})
	conf.Add(set, &s.poolIdle, conf.Duration(0, 24*time.Hour), conf.Option{Flag: "pool-idle-timeout", Env: []string{"POOL_UNUSED_RELEASE_TIMEOUT"}, Usage: "how long a tunnel without connections is kept; 0: not at all"})
	conf.Add(set, &s.poolStreams, conf.Int(0, 1<<20), conf.Option{Flag: "pool-max-streams", Env: []string{"POOL_MAX_STREAMS_PER_CONNECTION"}, Usage: "how many connections one tunnel carries at most; 0: as many as its peer allows"})
	conf.Add(set, &s.metrics, conf.AddrPort, conf.Option{Flag: "metrics-address", Usage: "address of the metrics server"})
	conf.Add(set, &s.ready, conf.AddrPort, conf.Option{Flag: "ready-address", Usage: "address of the readiness server"})
	conf.Add(set, &s.accessLog, conf.OneOf(on, off), conf.Option{Flag: "access-log", Usage: "one line a connection: true or false"})
}

// parseMode takes ztunnel's word too.
func parseMode(text string) (mode, error) {
	if text == "shared" {
		return modeNode, nil
	}
	return conf.OneOf(modeNode, modeDedicated)(text)
}

// parseServer reads host:port, with or without "https://" before it, as ztunnel does.
func parseServer(text string) (string, error) {
	address := strings.TrimSuffix(strings.TrimPrefix(text, "https://"), "/")
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return "", errors.New("not of the form host:port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("not a port from 1 to 65535 behind the host")
	}
	return address, nil
}

// evaluates reports whether the agent evaluates NetworkPolicies.
func (s *settings) evaluates() bool {
	return s.networkPol == networkOn || s.networkPol == networkAuto && s.workloads != ""
}

// check declares what must hold between settings.
func (s *settings) check(set *conf.Set) {
	set.Check("workloads", func() error {
		switch {
		case s.workloads == "" && s.xdsAddress == "":
			return errors.New("give --workloads or --xds-address: without either nothing is known")
		case s.workloads != "" && s.xdsAddress != "":
			return errors.New("give --workloads or --xds-address, not both")
		}
		return nil
	})
	set.Check("xds-address", func() error {
		if s.xdsAddress != "" && s.xdsRootCA == "" {
			return errors.New("needs --xds-root-ca (or $XDS_ROOT_CA): a file, PEM or SYSTEM")
		}
		return nil
	})
	set.Check("workload", func() error {
		switch {
		case s.mode == modeDedicated && s.workload == (workloadName{}):
			return errors.New("required in dedicated mode")
		case s.mode == modeNode && s.workload != (workloadName{}):
			return errors.New("only for --mode=dedicated")
		}
		return nil
	})
	set.Check("pods", func() error {
		switch {
		case s.mode == modeNode && s.pods == "" && s.handoff == "" && !s.kubernetes.on:
			return errors.New("give --pods, --handoff-socket or --kubernetes in node mode")
		case s.mode == modeDedicated && (s.pods != "" || s.handoff != ""):
			return errors.New("--pods and --handoff-socket are only for --mode=node")
		}
		return nil
	})
	set.Check("same-node", func() error {
		if s.sameNode == short && !s.evaluates() && s.networkPol != networkNone {
			return errors.New("short passes by the CNI's NetworkPolicies: give --network-policies=true, so that the agent evaluates them, or none, if there are none")
		}
		return nil
	})
	set.Check("kubernetes", s.checkKubernetes)
	set.Check("ca-cert", s.checkSource)
	set.Check("crl", s.checkCRL)
}

// checkSource wants exactly one source of certificates.
func (s *settings) checkSource() error {
	if (s.caCert == "") != (s.caKey == "") {
		return errors.New("--ca-cert and --ca-key go together")
	}
	n := 0
	for _, given := range []bool{s.caCert != "", s.caAddress != "", s.spire != "", s.spireAdmin != ""} {
		if given {
			n++
		}
	}
	switch {
	case n == 0:
		return errors.New("give a source of certificates: --ca-cert and --ca-key, --ca-address, --spire-admin-socket, or --spiffe-endpoint-socket")
	case n > 1:
		return errors.New("more than one source of certificates is given")
	case s.spire != "" && s.mode != modeDedicated:
		return errors.New("--spiffe-endpoint-socket is only for --mode=dedicated: the Workload API decides by the calling process")
	case s.spireAdmin != "" && s.mode != modeNode:
		return errors.New("--spire-admin-socket is only for --mode=node; in dedicated mode give --spiffe-endpoint-socket")
	case s.caAddress != "" && s.caRootCA == "":
		return errors.New("--ca-address needs --ca-root-ca (or $CA_ROOT_CA): a file, PEM or SYSTEM")
	}
	return nil
}

// checkCRL wants a file that can be read, or a place where one may come: a ConfigMap is mounted before it exists.
func (s *settings) checkCRL() error {
	if s.crl == "" {
		return nil
	}
	f, err := os.Open(s.crl)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(s.crl))
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", pe.Path, pe.Err)
	}
	if err != nil || f == nil {
		return err
	}
	return f.Close()
}
