package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/e2e/cluster/kube"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/wiretap"
)

// processOf is a process of the pod, as this machine numbers it, found by the pod's UID in its cgroups.
func processOf(uid string) (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "pod"+uid) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/cgroup", &pid); err == nil {
			return pid, nil
		}
	}
	return 0, errors.New("no process of pod " + uid)
}

// inPod runs a command of this machine in the network namespace of a pod.
func inPod(ctx context.Context, uid string, args ...string) (string, error) {
	pid, err := processOf(uid)
	if err != nil {
		return "", err
	}
	return command(ctx, append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid)}, args...)...)
}

// ruleset is what nftables holds in the pod's network namespace, with routes beside.
func ruleset(ctx context.Context, _, uid string) string {
	var b strings.Builder
	for _, args := range [][]string{{"nft", "list", "ruleset"}, {"ip", "rule"}, {"ss", "-Htln"}} {
		out, err := inPod(ctx, uid, args...)
		if err != nil {
			out = err.Error()
		}
		b.WriteString(out + "\n")
	}
	return b.String()
}

// captured reports whether the pod's namespace has the mesh's table.
func (a *app) captured() bool {
	a.t.Helper()
	out, err := inPod(a.t.Context(), a.uid, "nft", "list", "tables")
	if err != nil {
		a.t.Fatal(err)
	}
	return strings.Contains(out, "culvert")
}

// tap listens on the wire between the nodes.
func tap(t *testing.T, needles ...string) *wiretap.Tap {
	t.Helper()
	nodes := needNodes(t)
	ns, err := netns.Open(nodes.Node("node1").NetNS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	var search [][]byte
	for _, n := range needles {
		search = append(search, []byte(n))
	}
	wire, err := wiretap.Start(wiretap.Config{NS: ns, Interface: kube.WireInterface, Needles: search})
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// command runs a command of this machine.
func command(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// twoNodes are the names of two nodes that take pods.
func twoNodes(t *testing.T) (string, string) {
	t.Helper()
	list, err := shared.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range list.Items {
		if !n.Spec.Unschedulable {
			names = append(names, n.Name)
		}
	}
	if len(names) < 2 {
		t.Skip("needs two nodes")
	}
	slices.Sort(names)
	return names[0], names[1]
}
