package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/handoff"
)

var argsTests = []struct {
	name, args string
	want       handoff.CNIPod
	pod        bool
	err        string
}{
	{"containerd", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_INFRA_CONTAINER_ID=4f1d;K8S_POD_UID=0b7c-5c",
		handoff.CNIPod{Namespace: "shop", Name: "cart-0", UID: "0b7c-5c"}, true, ""},
	{"old_runtime", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0", handoff.CNIPod{Namespace: "shop", Name: "cart-0"}, true, ""},
	{"value_with_equals", "OTHER=a=b;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0", handoff.CNIPod{Namespace: "shop", Name: "cart-0"}, true, ""},
	{"same_twice", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_NAME=a", handoff.CNIPod{Namespace: "shop", Name: "a"}, true, ""},
	{"none", "", handoff.CNIPod{}, false, ""},
	{"others_only", "IgnoreUnknown=1;MAC=00:11;;=", handoff.CNIPod{}, false, ""},
	{"twice", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_NAMESPACE=kube-system", handoff.CNIPod{}, false, "two values of K8S_POD_NAMESPACE"},
	{"no_name", "K8S_POD_NAMESPACE=shop", handoff.CNIPod{}, false, "pod name"},
	{"no_namespace", "K8S_POD_NAME=a", handoff.CNIPod{}, false, "namespace"},
	{"path_in_name", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../../pods", handoff.CNIPod{}, false, "is not allowed"},
	{"query_in_name", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a?x", handoff.CNIPod{}, false, "is not allowed"},
	{"too_long", "X=" + strings.Repeat("x", maxArgs), handoff.CNIPod{}, false, "longer than"},
}

func TestPodOf(t *testing.T) {
	for _, tt := range argsTests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok, err := podOf(tt.args)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("podOf = %v, %v, %v, want an error with %q", got, ok, err, tt.err)
				}
				return
			}
			if err != nil || ok != tt.pod || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("podOf = %+v, %v, %v", got, ok, err)
			}
		})
	}
}

func FuzzPodOf(f *testing.F) {
	for _, tt := range argsTests {
		f.Add(tt.args)
	}
	f.Fuzz(func(t *testing.T, args string) {
		p, ok, err := podOf(args)
		if ok && (err != nil || p.Validate() != nil) {
			t.Fatalf("podOf(%q) = %+v, %v", args, p, err)
		}
	})
}

func TestOwnPod(t *testing.T) {
	tests := []struct {
		namespace, name string
		want            bool
	}{
		{"culvert-system", "culvert-node-x7k2p", true},
		{"culvert-system", "culvert-controller-6b8f9d7c5d-x7k2p", true},
		{"culvert-system", "culvert-controller-7c5d-x7k2p", true},
		{"default", "culvert-node-x7k2p", false},
		{"culvert-system", "culvert-node", false},
		{"culvert-system", "culvert-node-", false},
		{"culvert-system", "culvert-node-x7k2", false},
		{"culvert-system", "culvert-node-debug-x7k2p", false},
		{"culvert-system", "culvert-controller-x7k2p", false},
		{"culvert-system", "culvert-controller-a-b-x7k2p", false},
		{"culvert-system", "culvert-controller-toolongtohash-x7k2p", false},
		{"culvert-system", "culvert-controller--x7k2p", false},
		{"culvert-system", "waypoint-6b8f9d7c5d-x7k2p", false},
	}
	for _, tt := range tests {
		if got := ownPod(handoff.CNIPod{Namespace: tt.namespace, Name: tt.name}, "culvert-system"); got != tt.want {
			t.Errorf("ownPod(%s/%s) = %v", tt.namespace, tt.name, got)
		}
	}
}

func TestSelected(t *testing.T) {
	tests := []struct {
		namespace, pod string // labels; "" is absent
		sidecar, host  bool
		want           bool
	}{
		{"", "", false, false, false},
		{"none", "", false, false, false},
		{"", "ambient", false, false, true},
		{"none", "ambient", false, false, true},
		{"ambient", "", false, false, true},
		{"ambient", "none", false, false, false},
		{"ambient", "whatever", false, false, true},
		{"", "whatever", false, false, false},
		{"ambient", "ambient", true, false, false},
		{"ambient", "ambient", false, true, false},
	}
	for _, tt := range tests {
		var pod, namespace object
		label := func(o *object, v string) {
			if v != "" {
				o.Metadata.Labels = map[string]string{"istio.io/dataplane-mode": v}
			}
		}
		label(&pod, tt.pod)
		label(&namespace, tt.namespace)
		pod.Spec.HostNetwork = tt.host
		if tt.sidecar {
			pod.Metadata.Annotations = map[string]string{"sidecar.istio.io/status": ""}
		}
		if got, why := selected(pod, namespace, nil); got != tt.want || why == "" {
			t.Errorf("%+v: %v, %q", tt, got, why)
		}
	}
}

var resultTests = []struct {
	name, version, result string
	want                  []string
	err                   string
}{
	{"bridge", "1.0.0", `{"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/run/netns/a"}],
		"ips":[{"address":"10.1.0.1/24","interface":0},{"address":"10.1.0.7/24","interface":1},{"address":"fd00::7/64"}]}`, []string{"10.1.0.7", "fd00::7"}, ""},
	{"oldest", "0.3.0", `{"ips":[{"version":"4","address":"10.1.0.7/24"},{"version":"6","address":"fd00::7/64"}]}`, []string{"10.1.0.7", "fd00::7"}, ""},
	{"old", "0.3.1", `{"ips":[{"version":"4","address":"10.1.0.7/24","gateway":"10.1.0.1"}]}`, []string{"10.1.0.7"}, ""},
	{"newest", "1.1.0", `{"ips":[{"address":"10.1.0.7/32"}],"unknown":{"x":1}}`, []string{"10.1.0.7"}, ""},
	{"no_addresses", "1.0.0", `{}`, nil, ""},
	{"interface_out_of_range", "1.0.0", `{"ips":[{"address":"10.1.0.7/32","interface":9}]}`, []string{"10.1.0.7"}, ""},
	{"negative_interface", "1.0.0", `{"interfaces":[{}],"ips":[{"address":"10.1.0.7/32","interface":-1}]}`, []string{"10.1.0.7"}, ""},
	{"none", "1.0.0", ``, nil, "no prevResult"},
	{"null", "1.0.0", `null`, nil, "no prevResult"},
	{"wrong_type", "1.0.0", `[]`, nil, "parse prevResult"},
	{"bad_address", "1.0.0", `{"ips":[{"address":"300.0.0.1/24"}]}`, nil, "parse prevResult"},
	{"unspecified", "1.0.0", `{"ips":[{"address":"0.0.0.0/0"}]}`, nil, "not one of a pod"},
	{"too_many", "1.0.0", `{"ips":[{"address":"10.1.0.7/24"}` + strings.Repeat(`,{"address":"10.1.0.7/24"}`, 40) + `]}`, nil, "more than 32"},
}

func withResult(version, result string) []byte {
	text := fmt.Sprintf(`{"cniVersion":%q,"name":"n","type":"culvert-cni"`, version)
	if result != "" {
		text += `,"prevResult":` + result
	}
	return []byte(text + "}")
}

func TestAddressesOf(t *testing.T) {
	for _, tt := range resultTests {
		t.Run(tt.name, func(t *testing.T) {
			in, err := parseInput(withResult(tt.version, tt.result))
			var got []netip.Addr
			if err == nil {
				got, err = addressesOf(in)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("addressesOf = %v, %v, want an error with %q", got, err, tt.err)
				}
				return
			}
			if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("addressesOf = %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func FuzzInput(f *testing.F) {
	for _, tt := range resultTests {
		f.Add(withResult(tt.version, tt.result))
	}
	f.Add([]byte(`{"agentTimeout":"-1s","excludeNamespaces":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		in, err := parseInput(text)
		if err != nil {
			return
		}
		if err := in.validate(); err != nil {
			t.Fatalf("accepted configuration is not valid: %v", err)
		}
		addrs, err := addressesOf(in)
		if err == nil && len(addrs) > handoff.MaxAddresses {
			t.Fatalf("%d addresses", len(addrs))
		}
	})
}

func TestConfig(t *testing.T) {
	text, err := Config{}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var got Config
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, Config{}.withDefaults()) {
		t.Errorf("defaults %s read as %+v, %v", text, got, err)
	}
	for _, tt := range []struct{ name, text, err string }{
		{"empty", `{}`, ""},
		{"no_exclusions", `{"excludeNamespaces":[]}`, ""},
		{"not_json", `{`, "parse configuration"},
		{"relative_socket", `{"agentSocket":"agent.sock"}`, "not an absolute path"},
		{"other_type", `{"type":"bridge"}`, "not culvert-cni"},
		{"negative", `{"apiTimeout":"-1s"}`, "not between"},
		{"an_hour", `{"agentTimeout":"1h"}`, "not between"},
		{"a_number", `{"agentTimeout":10}`, "parse configuration"},
		{"selectors", `{"selectors":[{"pod":[{"label":"a","operator":"Exists"}]}]}`, ""},
		{"operator", `{"selectors":[{"namespace":[{"label":"a","operator":"Like"}]}]}`, `operator "Like" is unknown`},
	} {
		if _, err := parseInput([]byte(tt.text)); (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
	in, err := parseInput([]byte(`{"excludeNamespaces":[]}`))
	if err != nil || in.ExcludeNamespaces == nil || len(in.ExcludeNamespaces) != 0 {
		t.Errorf("an empty list of exclusions became %v, %v", in.ExcludeNamespaces, err)
	}
}
