package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/culvert-mesh/culvert/redirect/cni"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

func TestAdd(t *testing.T) {
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			l := newLab(t)
			l.vers = version
			a := l.serve(&agent{enrolled: true})
			c, rt := l.runtime()
			got, err := c.AddNetworkList(t.Context(), l.list(), rt)
			if err != nil {
				t.Fatal(err)
			}
			if got.Version() != version {
				t.Errorf("result is of version %s", got.Version())
			}
			want := []string{fmt.Sprintf("add shop/cart-0 %s [%s] %s", uid, address, l.ns)}
			if !reflect.DeepEqual(a.calls(), want) {
				t.Errorf("agent got %q, want %q", a.calls(), want)
			}
			l.wantLog(`"reason":"enrolled"`)
		})
	}
}

// TestResultIsUnchanged: also members that no version of the specification knows.
func TestResultIsUnchanged(t *testing.T) {
	l := newLab(t)
	l.serve(&agent{})
	prev := `{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.7/24"}],"vendor":{"a":[1,2.50]},"dns":{}}`
	out, err := l.byHand(t, "ADD", `{"cniVersion":"1.0.0","name":"net","type":"culvert-cni","prevResult":`+prev+`,%s}`)
	if err != nil || string(out) != prev {
		t.Errorf("ADD wrote %s, %v", out, err)
	}
}

func TestAddIsRefused(t *testing.T) {
	l := newLab(t)
	l.serve(&agent{err: errTaken})
	l.api(map[string]string{podPath: object("", ""), namespacePath: object("", "")}) // must not be asked
	l.wantAdd("pod shop/cart-0 cannot join the mesh: port 15001 is taken")
	l.wantLog("port 15001 is taken")
}

// TestPassesWithoutAnybody: what a node needs to come up.
func TestPassesWithoutAnybody(t *testing.T) {
	for _, pod := range [][2]string{
		{"kube-system", "coredns-6b8f9d7c5d-x7k2p"},
		{"culvert-system", "culvert-node-x7k2p"},
		{"culvert-system", "culvert-controller-6b8f9d7c5d-x7k2p"},
	} {
		t.Run(pod[1], func(t *testing.T) {
			l := newLab(t)
			l.pod(pod[0], pod[1])
			l.wantAdd("")
			c, rt := l.runtime()
			wantError(t, c.CheckNetworkList(t.Context(), l.list(), rt), "")
			wantError(t, c.DelNetworkList(t.Context(), l.list(), rt), "")
		})
	}
	t.Run("no_pod", func(t *testing.T) {
		l := newLab(t)
		l.args = nil
		l.wantAdd("")
	})
	t.Run("others_fail", func(t *testing.T) {
		l := newLab(t)
		l.pod("culvert-system", "culvert-node-debugger")
		l.wantAdd("agent is not there")
	})
}

func TestAgentIsAway(t *testing.T) {
	plain, ambient := object("", ""), object("ambient", "")
	mirror := `{"metadata":{"uid":"other","annotations":{"kubernetes.io/config.hash":"` + uid + `"}}}`
	tests := []struct {
		name    string
		objects map[string]string
		want    string
	}{
		{"not_labelled", map[string]string{podPath: plain, namespacePath: plain}, ""},
		{"opted_out", map[string]string{podPath: object("none", ""), namespacePath: ambient}, ""},
		{"sidecar", map[string]string{podPath: object("", `,"annotations":{"sidecar.istio.io/status":"{}"}`), namespacePath: ambient}, ""},
		{"mirror_of_static_pod", map[string]string{podPath: mirror, namespacePath: plain}, ""},
		{"labelled_namespace", map[string]string{podPath: plain, namespacePath: ambient}, "is to be in the mesh (pod has istio.io/dataplane-mode!=none, namespace has istio.io/dataplane-mode=ambient): the node's agent is not there"},
		{"labelled_pod", map[string]string{podPath: ambient, namespacePath: plain}, "pod shop/cart-0 is to be in the mesh (pod has istio.io/dataplane-mode=ambient)"},
		{"no_such_pod", map[string]string{namespacePath: plain}, "get pod shop/cart-0: API server answers 404"},
		{"no_such_namespace", map[string]string{podPath: plain}, "get namespace shop: API server answers 404"},
		{"replaced", map[string]string{podPath: `{"metadata":{"uid":"other"}}`, namespacePath: plain}, `it has UID "other"`},
		{"forbidden", map[string]string{podPath: "403", namespacePath: plain}, "refuses the plugin's token: 403"},
		{"redirect", map[string]string{podPath: "302", namespacePath: plain}, "API server answers 302"},
		{"not_json", map[string]string{podPath: "<html>", namespacePath: plain}, "parse API server's answer"},
		{"no_object", map[string]string{podPath: "{}", namespacePath: plain}, "is no object"},
		{"huge", map[string]string{podPath: `{"x":"` + strings.Repeat("x", 9<<20) + `"}`, namespacePath: plain}, "is longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.api(tt.objects)
			err := l.add()
			wantError(t, err, tt.want)
			var e *types.Error
			if tt.want != "" && (!errors.As(err, &e) || e.Code != types.ErrTryAgainLater) {
				t.Errorf("error is %#v, want try again later", err)
			}
		})
	}
}

// TestOwnSelectors: an administrator has chosen by which labels pods are in the mesh.
func TestOwnSelectors(t *testing.T) {
	const in = "is to be in the mesh (%s): the node's agent is not there"
	byPod, byNamespace := fmt.Sprintf(in, "pod has mesh=yes"), fmt.Sprintf(in, "pod has !debug, namespace has team,team!=ops")
	labelled := func(labels string) string { return fmt.Sprintf(`{"metadata":{"uid":%q,"labels":{%s}}}`, uid, labels) }
	for _, tt := range []struct {
		name, pod, namespace string
		want                 string
	}{
		{"taken", labelled(`"mesh":"yes"`), labelled(``), byPod},
		{"other_value", labelled(`"mesh":"no"`), labelled(``), ""},
		{"no_label", labelled(``), labelled(`"mesh":"yes"`), ""},
		{"namespace", labelled(``), labelled(`"team":"a"`), byNamespace},
		{"namespace_but_excluded", labelled(`"debug":""`), labelled(`"team":"a"`), ""},
		{"namespace_not_that_team", labelled(``), labelled(`"team":"ops"`), ""},
		{"not_the_default", object("ambient", ""), object("ambient", ""), ""},
		{"sidecar", strings.Replace(labelled(`"mesh":"yes"`), `"labels"`, `"annotations":{"sidecar.istio.io/status":"{}"},"labels"`, 1), labelled(``), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			var err error
			if l.conf.Selectors, err = selector.Parse("mesh=yes|!debug;team,team!=ops"); err != nil {
				t.Fatal(err)
			}
			l.api(map[string]string{podPath: tt.pod, namespacePath: tt.namespace})
			l.wantAdd(tt.want)
		})
	}
}

func TestAPIServerIsAway(t *testing.T) {
	tests := []struct {
		name string
		set  func(l *lab)
		want string
	}{
		{"no_file", func(*lab) {}, "api.json: no such file"},
		{"not_json", func(l *lab) { l.apiFile(token) }, "is not the JSON that it should be"},
		{"no_server", func(l *lab) { l.apiFile(map[string]string{"token": token}) }, "is not a https URL"},
		{"plain_http", func(l *lab) { l.apiFile(map[string]string{"server": "http://x", "token": token}) }, "is not a https URL"},
		{"no_ca", func(l *lab) { l.apiFile(map[string]string{"server": "https://x", "token": token}) }, "has no certificate"},
		{"refused", func(l *lab) {
			l.api(nil)
			l.patchAPIFile("server", "https://127.0.0.1:1")
		}, "connection refused"},
		{"other_ca", func(l *lab) {
			l.api(nil)
			l.patchAPIFile("caPEM", otherCA)
		}, "certificate signed by unknown authority"},
		{"wrong_token", func(l *lab) {
			l.api(nil)
			l.patchAPIFile("token", "old")
		}, "refuses the plugin's token: 401"},
		{"bad_token", func(l *lab) {
			l.api(nil)
			l.patchAPIFile("token", token+"\r\nX: y")
		}, "invalid header field value"},
		{"hangs", func(l *lab) {
			l.api(map[string]string{podPath: "hang"})
			l.conf.APITimeout = cni.Duration(100 * time.Millisecond)
		}, "deadline exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			tt.set(l)
			l.wantAdd(tt.want)
			l.wantLog("whether it is to be in the mesh cannot be found out")
		})
	}
	t.Run("token_file", func(t *testing.T) {
		l := newLab(t)
		l.api(map[string]string{podPath: object("", ""), namespacePath: object("", "")})
		l.patchAPIFile("token", "")
		file := filepath.Join(l.dir, "token")
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.patchAPIFile("tokenFile", file)
		l.wantAdd("")
	})
}

// TestAgentHangs: what does not answer is away.
func TestAgentHangs(t *testing.T) {
	l := newLab(t)
	l.conf.AgentTimeout = cni.Duration(200 * time.Millisecond)
	l.serve(&agent{hang: true})
	l.api(map[string]string{podPath: object("", ""), namespacePath: object("ambient", "")})
	l.wantAdd("does not answer: hand over pod shop/cart-0: context deadline exceeded")
	l.api(map[string]string{podPath: object("", ""), namespacePath: object("", "")})
	l.wantAdd("")
}

// TestAgentComesBack is what the kubelet's retries see.
func TestAgentComesBack(t *testing.T) {
	l := newLab(t)
	l.wantAdd("agent is not there")
	l.serve(&agent{enrolled: true})
	l.wantAdd("")
}

func TestCheck(t *testing.T) {
	l := newLab(t)
	a := l.serve(&agent{enrolled: true})
	l.wantAdd("")
	c, rt := l.runtime()
	wantError(t, c.CheckNetworkList(t.Context(), l.list(), rt), "")
	if calls := a.calls(); len(calls) != 2 || !strings.HasPrefix(calls[1], "check shop/cart-0 ") {
		t.Errorf("agent got %q", calls)
	}
	a.fail(errTaken)
	wantError(t, c.CheckNetworkList(t.Context(), l.list(), rt), "port 15001 is taken")
	l.conf.AgentSocket = "/nowhere/s"
	wantError(t, c.CheckNetworkList(t.Context(), l.list(), rt), "agent is not there")
}

func TestDel(t *testing.T) {
	l := newLab(t)
	a := l.serve(&agent{enrolled: true})
	l.wantAdd("")
	c, rt := l.runtime()
	wantError(t, c.DelNetworkList(t.Context(), l.list(), rt), "")
	want := fmt.Sprintf("del shop/cart-0 %s [] %s", uid, l.ns)
	if calls := a.calls(); len(calls) != 2 || calls[1] != want {
		t.Errorf("agent got %q, want %q", calls, want)
	}
	t.Run("again_and_namespace_gone", func(t *testing.T) {
		rt := *rt
		rt.NetNS = ""
		wantError(t, c.DelNetworkList(t.Context(), l.list(), &rt), "")
	})
	t.Run("agent_fails", func(t *testing.T) {
		a.fail(errTaken)
		wantError(t, c.DelNetworkList(t.Context(), l.list(), rt), "")
	})
	t.Run("agent_away", func(t *testing.T) {
		l.conf.AgentSocket = "/nowhere/s"
		wantError(t, c.DelNetworkList(t.Context(), l.list(), rt), "")
	})
	t.Run("faulty_configuration", func(t *testing.T) {
		l.more = `,"agentTimeout":"never"`
		wantError(t, c.DelNetworkList(t.Context(), l.list(), rt), "")
		wantError(t, l.add(), "never")
	})
}

func TestGCAndStatus(t *testing.T) {
	l := newLab(t)
	c, _ := l.runtime()
	gc := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}}}
	wantError(t, c.GCNetworkList(t.Context(), l.list(), gc), "")
	wantError(t, c.GetStatusNetworkList(t.Context(), l.list()), "") // else no pod would start, the agent's neither
	l.wantLog(`"command":"STATUS"`)
	l.conf.StatusNeedsAgent = true
	wantError(t, c.GetStatusNetworkList(t.Context(), l.list()), "agent is not there")
	a := l.serve(&agent{})
	wantError(t, c.GetStatusNetworkList(t.Context(), l.list()), "")
	a.fail(errTaken)
	wantError(t, c.GetStatusNetworkList(t.Context(), l.list()), "agent cannot enrol pods: port 15001 is taken")
}

// byHand runs the plugin without libcni; the configuration has one %s for its own
// members.
func (l *lab) byHand(t *testing.T, command, conf string, env ...string) ([]byte, error) {
	t.Helper()
	entry, err := l.conf.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(conf, "%s") {
		conf = fmt.Sprintf(conf, strings.Trim(string(entry), "{}"))
	}
	_, rt := l.runtime()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "culvert-cni"))
	cmd.Env = append([]string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=4f1d", "CNI_NETNS=" + rt.NetNS, "CNI_IFNAME=eth0", "CNI_PATH=" + binDir,
		"CNI_ARGS=K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0",
	}, env...)
	cmd.Stdin = strings.NewReader(conf)
	return cmd.Output()
}

func TestBadInput(t *testing.T) {
	const good = `{"cniVersion":"1.0.0","name":"net","type":"culvert-cni","prevResult":{"ips":[{"address":"10.1.0.7/24"}]},%s}`
	l := newLab(t)
	a := l.serve(&agent{})
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, command, conf, env string
		code                     uint
		want                     string
	}{
		{"not_json", "ADD", `{`, "", types.ErrDecodingFailure, "unexpected end of JSON"},
		{"nothing", "ADD", ``, "", types.ErrDecodingFailure, "unexpected end of JSON"},
		{"endless", "ADD", strings.Repeat(" ", cni.MaxInput+1), "", types.ErrIOFailure, "longer than"},
		{"no_prev_result", "ADD", `{"cniVersion":"1.0.0","name":"net",%s}`, "", types.ErrInvalidNetworkConfig, "has to be chained after"},
		{"bad_prev_result", "ADD", `{"cniVersion":"1.0.0","name":"net","prevResult":7,%s}`, "", types.ErrInvalidNetworkConfig, "parse prevResult"},
		{"bad_setting", "ADD", `{"cniVersion":"1.0.0","name":"net","type":"culvert-cni","prevResult":{},"agentSocket":"s"}`, "", types.ErrInvalidNetworkConfig, "not an absolute path"},
		{"old_version", "ADD", `{"cniVersion":"0.2.0","name":"net",%s}`, "", types.ErrIncompatibleCNIVersion, ""},
		{"no_version", "ADD", `{"name":"net",%s}`, "", types.ErrIncompatibleCNIVersion, ""},
		{"future_version", "ADD", `{"cniVersion":"9.0.0","name":"net",%s}`, "", types.ErrIncompatibleCNIVersion, ""},
		{"unknown_command", "EXEC", good, "", types.ErrInvalidEnvironmentVariables, "EXEC"},
		{"host_namespace", "ADD", good, "CNI_NETNS=/proc/self/ns/net", types.ErrInvalidNetNS, "network namespace of the host"},
		{"no_namespace", "ADD", good, "CNI_NETNS=/nowhere", types.ErrInvalidNetNS, "/nowhere"},
		{"other_namespace", "ADD", good, "CNI_NETNS=/proc/self/ns/mnt", types.ErrInvalidNetNS, "not a network namespace"},
		{"plain_file", "ADD", good, "CNI_NETNS=/dev/null", types.ErrInvalidNetNS, "not a network namespace"},
		{"half_a_pod", "ADD", good, "CNI_ARGS=K8S_POD_NAME=a", types.ErrInvalidEnvironmentVariables, "namespace"},
		{"two_namespaces", "ADD", good, "CNI_ARGS=K8S_POD_NAME=a;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAMESPACE=b", types.ErrInvalidEnvironmentVariables, "two values"},
		{"check_in_host", "CHECK", good, "CNI_NETNS=/proc/self/ns/net", types.ErrInvalidNetNS, "network namespace of the host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := l.byHand(t, tt.command, tt.conf, tt.env)
			var e types.Error
			if err == nil || json.Unmarshal(out, &e) != nil || e.Code != tt.code || !strings.Contains(e.Msg+e.Details, tt.want) {
				t.Errorf("%v, %s, want code %d with %q", err, out, tt.code, tt.want)
			}
		})
	}
	if calls := a.calls(); len(calls) != 0 {
		t.Errorf("agent got %q (this process is in %s)", calls, own)
	}
}

func TestVersion(t *testing.T) {
	l := newLab(t)
	out, err := l.byHand(t, "VERSION", "")
	if err != nil || !bytes.Contains(out, []byte(`"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]`)) {
		t.Errorf("VERSION: %s, %v", out, err)
	}
	for _, arg := range []string{"version", "--version"} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, "culvert-cni"), arg).Output()
		if err != nil || !bytes.HasPrefix(out, []byte("culvert-cni ")) {
			t.Errorf("%s: %s, %v", arg, out, err)
		}
	}
}
