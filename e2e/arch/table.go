package arch

// Edges is the one direction of imports: `identity` is the floor, `workload` and `hbone` stand on it side by side,
// `hbone/proxy` and `waypoint` are the only places that join tunnel and workload, `redirect` knows neither, and `cmd`
// joins everything. Packages that do not exist yet are listed with the place that they will have.
func Edges() []Edge { return append(planeEdges(), joinEdges()...) }

// planeEdges are of the packages that know one thing each.
func planeEdges() []Edge {
	return []Edge{
		{From: "identity"},
		{From: "identity/svid", To: []string{"identity"}},
		{From: "identity/manager", To: []string{"identity", "identity/svid"}},
		{From: "identity/mtls", To: []string{"identity", "identity/svid"}},
		{From: "identity/ca", To: []string{"identity", "identity/svid"}},
		{From: "identity/ca/issuer", To: []string{"identity", "identity/svid", "identity/ca/authority"}},
		{From: "identity/ca/authority", To: []string{"identity", "identity/svid"}},
		{From: "identity/ca/server", To: []string{"identity", "identity/ca/authority"}},
		{From: "identity/spire", To: []string{"identity", "identity/svid"}},
		{From: "identity/identitytest", To: []string{"identity/**"}},

		{From: "workload", To: []string{"identity"}},
		{From: "workload/internal/*"},
		{From: "workload/policy", To: []string{"workload", "workload/internal/hamt", "identity"}},
		{From: "workload/egress"},
		{From: "workload/route", To: []string{"workload", "workload/egress", "identity"}},
		{From: "workload/dns", To: []string{"workload"}},
		{From: "workload/dns/lookup"},
		{From: "workload/dns/server", To: []string{"workload/dns", "workload"}},
		{From: "workload/netpol", To: []string{"workload/internal/hamt"}},
		{From: "workload/netpol/netpolpb"},
		{From: "workload/netpol/wire", To: []string{"workload/netpol", "workload/netpol/netpolpb"}},
		{From: "workload/status", To: []string{"workload", "workload/policy", "workload/source/kube"}},
		{From: "workload/telemetry", To: []string{"workload", "identity"}},
		{From: "workload/source/*", To: []string{"workload", "workload/policy", "workload/netpol", "workload/netpol/wire", "identity"}},
		{From: "workload/publish", To: []string{"workload", "workload/internal/hamt", "workload/policy", "workload/netpol", "workload/netpol/wire", "identity"}},
		{From: "workload/workloadtest", To: []string{"workload/**", "identity"}},

		{From: "hbone", To: []string{"identity", "hbone/tunnel", "hbone/loop", "hbone/h2"}},
		{From: "hbone/aesgcm"},
		{From: "hbone/record", To: []string{"hbone/aesgcm"}},
		{From: "hbone/h2"},
		{From: "hbone/loop"},
		{From: "hbone/tunnel", To: []string{"hbone/record", "hbone/h2", "hbone/loop", "identity"}},
		{From: "hbone/relay", To: []string{"hbone/h2", "hbone/loop", "hbone/tunnel"}},
		{From: "hbone/pool", To: []string{"hbone/tunnel", "hbone/loop", "identity"}},
		{From: "hbone/proxy", To: []string{
			"hbone/pool", "hbone/relay", "hbone/tunnel", "hbone/loop", "hbone/h2", "hbone/record",
			"identity", "identity/svid", "identity/mtls",
			"workload", "workload/policy", "workload/netpol", "workload/egress", "workload/route",
		}},
		{From: "hbone/handover", To: []string{"hbone/proxy", "hbone/pool", "hbone/relay", "hbone/tunnel", "hbone/loop"}},
		{From: "hbone/hbonetest", To: []string{"hbone/**", "identity/**"}},

		{From: "redirect/netns"},
		{From: "redirect/nft", To: []string{"redirect/netns"}},
		{From: "redirect/origdst", To: []string{"redirect/netns"}},
		{From: "redirect/wiretap", To: []string{"redirect/netns"}},
		{From: "redirect/link", To: []string{"redirect/netns"}},
		{From: "redirect/topology", To: []string{"redirect/netns", "redirect/link"}},
		{From: "redirect", To: []string{"redirect/netns", "redirect/nft"}},
		{From: "redirect/handoff", To: []string{"redirect/netns"}},
		{From: "redirect/zds", To: []string{"redirect/netns"}},
		{From: "redirect/podset", To: []string{"redirect", "redirect/netns", "redirect/handoff"}},
		{From: "redirect/procns", To: []string{"redirect/netns"}},
		{From: "redirect/hostrules", To: []string{"redirect/netns", "redirect/nft"}},
		{From: "redirect/selector"},
		{From: "redirect/cni", To: []string{"redirect/handoff", "redirect/netns", "redirect/selector"}},
		{From: "redirect/cni/install", To: []string{"redirect/cni"}},
		{From: "redirect/netnstest", To: []string{"redirect/**"}},

		{From: "waypoint/httproute", To: []string{"workload"}},
		{From: "waypoint/filter", To: []string{"waypoint/httproute", "workload", "workload/policy", "identity"}},
		{From: "waypoint/upstream", To: []string{"hbone", "workload", "workload/route", "identity"}},
		{From: "waypoint", To: []string{
			"waypoint/httproute", "waypoint/filter", "waypoint/upstream",
			"hbone", "identity", "identity/svid", "identity/mtls", "workload", "workload/policy",
		}},
		{From: "waypoint/gatewayapi", To: []string{"waypoint/httproute", "workload"}},
		{From: "waypoint/controller", To: []string{"waypoint/gatewayapi"}},
	}
}

// joinEdges are of what joins them: programs, deployment, documentation, and tests of the whole.
func joinEdges() []Edge {
	return []Edge{
		{From: "cmd/internal/*"},
		{From: "cmd/internal/objects", To: []string{"cmd/internal/access"}},
		{From: "cmd/internal/authz", To: []string{
			"cmd/internal/enrol", "identity", "workload", "workload/policy", "workload/route", "workload/source/kube",
		}},
		{From: "cmd/internal/launch", To: []string{"cmd/internal/admin", "cmd/internal/conf"}},
		{From: "cmd/internal/kubeca", To: []string{"identity", "identity/svid", "identity/ca/authority", "identity/ca/server"}},
		{From: "cmd/internal/kubenode", To: []string{"cmd/internal/enrol", "workload/egress", "redirect/**"}},
		{From: "cmd/internal/installer", To: []string{"cmd/internal/access", "cmd/internal/inspect", "cmd/internal/netpolcheck", "deploy"}},
		{From: "cmd/internal/enrol", To: []string{"redirect/selector"}},
		{From: "cmd/internal/inspect", To: []string{"cmd/internal/access", "cmd/internal/enrol", "deploy", "redirect/netns", "redirect/selector"}},
		{From: "cmd/internal/netpolcheck", To: []string{"cmd/internal/enrol", "redirect/selector"}},
		{From: "cmd/internal/companion", To: []string{"cmd/internal/netpolcheck", "cmd/internal/enrol"}},
		{From: "cmd/culvert", To: []string{"deploy", "e2e/netlab"}}, // the demonstration is the lab, told to a person
		{From: "cmd/*", To: []string{"cmd/internal/*", "identity/**", "workload/**", "hbone/**", "redirect/**", "waypoint/**"}},

		{From: "deploy"},
		{From: "deploy/gen", To: []string{"deploy"}},
		{From: "deploy/image"},

		{From: "docs"},
		{From: "e2e/arch"},
		{From: "e2e/netlab", To: []string{"identity/ca/issuer"}},
		{From: "e2e/bench", To: []string{"e2e/netlab", "identity", "identity/svid", "identity/ca/issuer"}},
		{From: "e2e/soak", To: []string{"e2e/netlab"}},
		{From: "e2e/cluster", To: []string{"e2e/cluster/**", "identity", "identity/ca", "identity/identitytest", "redirect/netns", "redirect/wiretap"}},
		{From: "e2e/cluster/cmd/*", To: []string{"e2e/cluster/kube", "e2e/cluster/machine"}},
		{From: "e2e/cluster/kube", To: []string{"e2e/cluster/machine", "e2e/cluster/archive"}},
		{From: "e2e/cluster/*"},
		{From: "deploy/samples/*"},
		{From: "e2e/*", To: []string{"redirect/netns", "redirect/topology", "redirect/wiretap"}},
	}
}

// Fences keeps each heavy dependency in the few packages that exist to hold it.
func Fences() []Fence { return append(systemFences(), libraryFences()...) }

// systemFences are around what reaches other systems or the kernel.
func systemFences() []Fence {
	return []Fence{
		{
			Name: "Kubernetes", Tests: true,
			Prefixes: []string{"k8s.io", "sigs.k8s.io"},
			Allowed: []string{
				"workload/source/kube", "workload/status", "waypoint/gatewayapi", "waypoint/controller",
				"cmd/culvert", "cmd/culvert-node", "cmd/culvert-controller", "cmd/culvert-waypoint",
				"cmd/internal/kubeca", "cmd/internal/kubenode", "cmd/internal/access", "cmd/internal/apiserver", "cmd/internal/installer", "cmd/internal/inspect",
				"cmd/internal/objects", "cmd/internal/authz", "cmd/internal/netpolcheck", "cmd/internal/companion", "cmd/internal/kubetest", "deploy/**", "e2e/**",
			},
		},
		{
			Name: "gRPC and xDS", Tests: true,
			Prefixes: []string{"google.golang.org/grpc", "github.com/envoyproxy", "github.com/cncf/xds"},
			Allowed: []string{
				"workload/source/xds", "workload/publish", "identity/ca", "identity/ca/issuer", "identity/ca/server", "identity/spire",
				"identity/identitytest", "workload/workloadtest", "workload/source/xds/*test", "cmd/culvert-controller", "e2e/**",
			},
		},
		{
			Name: "protobuf and Istio's wire types", Tests: true,
			Prefixes: []string{"google.golang.org/protobuf", "istio.io"},
			Allowed: []string{
				"workload/source/xds", "workload/source/kube", "workload/publish", "workload/status", "workload/netpol/netpolpb", "workload/netpol/wire",
				"identity/ca", "identity/ca/issuer", "identity/ca/server", "identity/spire", "redirect/zds", "waypoint/gatewayapi", "deploy/**",
				"identity/identitytest", "workload/workloadtest", "workload/source/xds/*test", "cmd/culvert-controller", "e2e/**",
			},
		},
		{
			Name: "SPIFFE's Workload API", Tests: true,
			Prefixes: []string{"github.com/spiffe"},
			Allowed:  []string{"identity/spire", "identity/identitytest"},
		},
		{
			Name:     "netlink, nftables and raw system calls",
			Prefixes: []string{"github.com/vishvananda", "github.com/google/nftables", "github.com/mdlayher", "golang.org/x/sys", "github.com/cilium/ebpf"},
			Except:   []string{"golang.org/x/sys/cpu"}, // which instructions the processor has
			Allowed:  []string{"redirect/**", "hbone/loop"},
		},
		{
			Name:     "unsafe",
			Prefixes: []string{"unsafe"},
			Allowed:  []string{"redirect/**", "hbone/loop", "workload/netpol/netpolpb"}, // the last is generated
		},
		{
			Name:     "the outside world (sans-IO packages own no socket, file or clock)",
			Prefixes: []string{"net", "os", "syscall", "log", "log/slog"},
			Except:   []string{"net/netip", "net/url"},
			Allowed:  notSansIO(),
		},
	}
}

// libraryFences are around libraries that one place is enough for.
func libraryFences() []Fence {
	return []Fence{
		{
			Name:     "Prometheus",
			Prefixes: []string{"github.com/prometheus"},
			Allowed:  []string{"workload/telemetry", "waypoint/**", "cmd/internal/admin", "e2e/**"},
		},
		{
			Name:     "HTTP/2 implementations",
			Prefixes: []string{"golang.org/x/net/http2"},
			Except:   []string{"golang.org/x/net/http2/hpack"},
			Allowed:  []string{"hbone/hbonetest", "waypoint/**", "e2e/**"},
		},
		{
			Name:     "HPACK",
			Prefixes: []string{"golang.org/x/net/http2/hpack"},
			Allowed:  []string{"hbone/**", "waypoint/**", "e2e/**"},
		},
		{
			Name:     "DNS messages",
			Prefixes: []string{"github.com/miekg/dns"},
			Allowed:  []string{"workload/dns/**", "e2e/**"},
		},
		{
			Name:     "YAML",
			Prefixes: []string{"go.yaml.in/yaml", "sigs.k8s.io/yaml"},
			Allowed:  []string{"workload/source/file", "cmd/*", "cmd/internal/conf", "cmd/internal/installer", "cmd/internal/yamltext", "deploy/**", "e2e/**"},
		},
		{
			Name: "the command line", Tests: true,
			Prefixes: []string{"github.com/spf13"},
			Allowed:  []string{"cmd/*"},
		},
		{
			Name: "Helm and images", Tests: true,
			Prefixes: []string{"helm.sh", "github.com/google/go-containerregistry"},
			Allowed:  []string{"deploy/**", "cmd/culvert", "cmd/internal/installer", "e2e/**"},
		},
		{
			Name: "CNI", Tests: true,
			Prefixes: []string{"github.com/containernetworking"},
			Allowed:  []string{"redirect/cni/**", "cmd/culvert-cni"},
		},
		{
			Name:     "test libraries",
			Prefixes: []string{"testing", "github.com/google/go-cmp", "go.uber.org/goleak", "net/http/httptest"},
			Allowed:  []string{"*test", "*/*test", "*/*/*test", "*/*/*/*test", "e2e/**"},
		},
	}
}

// notSansIO returns patterns for every package but hbone/aesgcm, hbone/record and hbone/h2.
func notSansIO() []string {
	return []string{
		"", "deps", "docs", "deploy/**", "identity/**", "workload/**", "redirect/**", "waypoint/**", "cmd/**", "e2e/**",
		"hbone", "hbone/loop", "hbone/tunnel", "hbone/relay", "hbone/pool", "hbone/proxy", "hbone/handover", "hbone/hbonetest",
	}
}

// Assembly lists the packages that may have assembly: each has a twin in Go, which runs where the assembly does not, and a
// test that holds one against the other.
func Assembly() []string { return []string{"hbone/aesgcm"} }

// Closures lists what small programs may not link.
func Closures() []Closure {
	return []Closure{
		{Package: "cmd/culvert-cni", Prefixes: []string{"k8s.io", "sigs.k8s.io", "google.golang.org/grpc", "github.com/prometheus"}},
		// With text/template, which calls methods by name, the linker keeps every method of every type.
		{Package: "cmd/culvert-node", Prefixes: []string{"testing", "text/template"}},
		{Package: "cmd/culvert-controller", Prefixes: []string{"testing", "text/template"}},
		{Package: "cmd/culvert", Prefixes: []string{"testing"}},
	}
}

// Default is the module's own set of tables.
func Default() Tables {
	return Tables{Edges: Edges(), Fences: Fences(), Closures: Closures()}
}
