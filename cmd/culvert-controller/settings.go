package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/conf"
	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/cmd/internal/launch"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// settings is what flags and environment say.
type settings struct {
	common                   launch.Common
	kubeconfig               string
	namespace, pod           string
	rootNamespace            string
	trustDomain              identity.TrustDomain
	trustDomainAliases       []identity.TrustDomain
	cluster, domain, network string
	lenientL7                bool

	grpc, metrics   netip.AddrPort
	serverNames     []string
	agents          []kubeca.Account
	audiences       []string
	removeTaints    bool
	networkPolicies bool

	companions, agentsDNS bool
	exclude               []string

	ttl, maxTTL, rootTTL time.Duration
	settle, overlap      time.Duration

	lease time.Duration
	drain time.Duration
}

func readSettings(args []string, lookup func(string) (string, bool)) (*settings, *conf.Set, error) {
	s := &settings{
		namespace: "culvert-system", trustDomain: identity.MustTrustDomain("cluster.local"), cluster: "Kubernetes", domain: "cluster.local",
		grpc: netip.MustParseAddrPort("[::]:15012"), metrics: netip.MustParseAddrPort("[::]:15014"),
		audiences: []string{kubeca.DefaultAudience}, removeTaints: true, networkPolicies: true, agentsDNS: true,
		ttl: authority.DefaultTTL, maxTTL: authority.DefaultMaxTTL, rootTTL: authority.DefaultRootTTL,
		lease: 15 * time.Second, drain: 5 * time.Second, common: launch.Defaults(),
	}
	set := conf.New("culvert-controller", lookup)
	s.declareCluster(set)
	s.declareServers(set)
	s.declareAuthority(set)
	s.common.Declare(set)
	set.Check("ca-max-ttl", func() error {
		_, err := s.authority().WithDefaults()
		return err
	})
	if err := set.Parse(args); err != nil {
		return nil, set, err
	}
	return s, set, s.complete()
}

func (s *settings) declareCluster(set *conf.Set) {
	conf.Add(set, &s.kubeconfig, conf.File, conf.Option{Flag: "kubeconfig", Env: []string{"KUBECONFIG"}, Usage: "how to reach the API server; by default as a pod does"})
	conf.Add(set, &s.namespace, conf.String, conf.Option{Flag: "namespace", Env: []string{"POD_NAMESPACE"}, Usage: "namespace of the controller and the agents"})
	conf.Add(set, &s.pod, conf.String, conf.Option{Flag: "pod-name", Env: []string{"POD_NAME"}, Usage: "name of this replica in the election; default the name of the machine"})
	conf.Add(set, &s.rootNamespace, conf.String, conf.Option{Flag: "root-namespace", Env: []string{"CULVERT_ROOT_NAMESPACE"}, Usage: "namespace whose policies hold for the whole mesh; default the controller's"})
	conf.Add(set, &s.trustDomain, identity.ParseTrustDomain, conf.Option{Flag: "trust-domain", Env: []string{"TRUST_DOMAIN"}, Usage: "trust domain of all identities"})
	conf.Add(set, &s.trustDomainAliases, conf.List(identity.ParseTrustDomain), conf.Option{Flag: "trust-domain-aliases", Env: []string{"TRUST_DOMAIN_ALIASES"}, Usage: "further names of the trust domain in policies, separated by commas"})
	conf.Add(set, &s.cluster, conf.String, conf.Option{Flag: "cluster", Env: []string{"CLUSTER_ID"}, Usage: "name of this cluster"})
	conf.Add(set, &s.domain, conf.String, conf.Option{Flag: "cluster-domain", Env: []string{"CLUSTER_DOMAIN"}, Usage: "DNS suffix of the cluster"})
	conf.Add(set, &s.network, conf.String, conf.Option{Flag: "network", Env: []string{"NETWORK"}, Usage: "name of the network that the cluster's addresses are in"})
	conf.Add(set, &s.lenientL7, conf.Bool, conf.Option{Flag: "lenient-l7", Env: []string{"CULVERT_LENIENT_L7"}, Usage: "read layer 7 conditions that nothing enforces as Istio does, instead of denying by the rest of their rule"})
	conf.Add(set, &s.removeTaints, conf.Bool, conf.Option{Flag: "remove-taints", Env: []string{"CULVERT_REMOVE_TAINTS"}, Usage: "take the taints " + strings.Join(taintKeys[:], " and ") + " off nodes whose agent is ready"})
	conf.Add(set, &s.companions, conf.Bool, conf.Option{Flag: "netpol-companions", Usage: "keep a NetworkPolicy beside each of the users' that names ports without HBONE's: the same pods and peers, TCP 15008"})
	conf.Add(set, &s.exclude, conf.List(conf.String), conf.Option{Flag: "exclude-namespaces", Usage: "namespaces that are never in the mesh, as the agents are told: they get no such policy"})
	conf.Add(set, &s.agentsDNS, conf.Bool, conf.Option{Flag: "agents-capture-dns", Usage: "the agents capture DNS: what is for it alone needs no such policy"})
	conf.Add(set, &s.networkPolicies, conf.Bool, conf.Option{Flag: "network-policies", Usage: "read NetworkPolicies and ClusterNetworkPolicies and send them to the agents"})
	conf.Add(set, &s.lease, conf.Duration(3*time.Second, 10*time.Minute), conf.Option{Flag: "lease-duration", Usage: "after how long a leader that is not heard of is replaced"})
}

func (s *settings) declareServers(set *conf.Set) {
	conf.Add(set, &s.grpc, conf.AddrPort, conf.Option{Flag: "grpc-address", Usage: "address of discovery and the certificate service"})
	conf.Add(set, &s.metrics, conf.AddrPort, conf.Option{Flag: "metrics-address", Usage: "address of metrics, liveness and readiness"})
	conf.Add(set, &s.serverNames, conf.List(conf.String), conf.Option{Flag: "server-names", Usage: "further DNS names of the controller's certificate, separated by commas"})
	conf.Add(set, &s.agents, conf.List(parseAccount), conf.Option{Flag: "agents", Env: []string{"CA_TRUSTED_NODE_ACCOUNTS"}, Usage: "service accounts of node agents, namespace/name, separated by commas; default culvert-node of the controller's namespace"})
	conf.Add(set, &s.audiences, conf.List(conf.String), conf.Option{Flag: "token-audiences", Env: []string{"TOKEN_AUDIENCES"}, Usage: "audiences that agents' tokens are made for, separated by commas"})
	conf.Add(set, &s.drain, conf.Duration(0, time.Hour), conf.Option{Flag: "drain-timeout", Usage: "how long requests may go on after the signal to stop"})
}

func (s *settings) declareAuthority(set *conf.Set) {
	century := 100 * 365 * 24 * time.Hour
	conf.Add(set, &s.ttl, conf.Duration(time.Minute, century), conf.Option{Flag: "ca-ttl", Env: []string{"DEFAULT_WORKLOAD_CERT_TTL"}, Usage: "validity of certificates whose request names none"})
	conf.Add(set, &s.maxTTL, conf.Duration(time.Minute, century), conf.Option{Flag: "ca-max-ttl", Env: []string{"MAX_WORKLOAD_CERT_TTL"}, Usage: "longest validity that may be asked for"})
	conf.Add(set, &s.rootTTL, conf.Duration(time.Minute, century), conf.Option{Flag: "ca-root-ttl", Env: []string{"CITADEL_SELF_SIGNED_CA_CERT_TTL"}, Usage: "life of a root that is made here"})
	conf.Add(set, &s.settle, conf.Duration(time.Second, century), conf.Option{Flag: "ca-rotation-settle", Usage: "how long a new root is known before it signs; default the longest validity"})
	conf.Add(set, &s.overlap, conf.Duration(time.Second, century), conf.Option{Flag: "ca-rotation-overlap", Usage: "how long an old root is trusted after that; default the longest validity and an hour"})
}

// complete fills in what depends on other settings.
func (s *settings) complete() error {
	s.rootNamespace = cmp.Or(s.rootNamespace, s.namespace)
	if len(s.agents) == 0 {
		s.agents = []kubeca.Account{{Namespace: s.namespace, Name: "culvert-node"}}
	}
	if s.pod == "" {
		var err error
		if s.pod, err = os.Hostname(); err != nil {
			return fmt.Errorf("--pod-name: %w", err)
		}
	}
	return nil
}

func (s *settings) authority() authority.Config {
	return authority.Config{TrustDomain: s.trustDomain, TTL: s.ttl, MaxTTL: s.maxTTL, RootTTL: s.rootTTL, Settle: s.settle, Overlap: s.overlap}
}

func (s *settings) aliases() []string {
	var out []string
	for _, domain := range s.trustDomainAliases {
		out = append(out, domain.String())
	}
	return out
}

// names are those that the controller's certificate has: whatever a client inside the cluster may call its Service.
func (s *settings) names() []string {
	service := "culvert-controller." + s.namespace + ".svc"
	return append([]string{service, service + "." + s.domain, "culvert-controller." + s.namespace, "culvert-controller"}, s.serverNames...)
}

// parseAccount reads "namespace/name".
func parseAccount(text string) (kubeca.Account, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return kubeca.Account{}, errors.New("not of the form namespace/name")
	}
	return kubeca.Account{Namespace: namespace, Name: name}, nil
}
