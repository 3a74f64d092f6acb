package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Somebody has deleted what gives the agents their permissions and spoilt a node's CNI configuration: `culvert check` says
// both, `culvert uninstall` ends soon, removes the rest and says what stays where. The next installation cleans that, or else
// TestUninstallLeavesNothing finds it.
func TestDamagedCluster(t *testing.T) {
	nodes := needNodes(t)
	m := mesh(t)
	_, name := twoNodes(t)
	root := fmt.Sprintf("/proc/%d/root", nodes.Node(name).PID())
	files, err := filepath.Glob(root + "/etc/cni/net.d/*.conflist")
	if err != nil || len(files) != 1 {
		t.Fatalf("configurations on %s: %v %v", name, files, err)
	}
	good, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.client.RbacV1().ClusterRoleBindings().Delete(t.Context(), "culvert-node", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	mend := func() error { return os.WriteFile(files[0], good, 0o600) }
	t.Cleanup(func() { _ = mend() })
	if err := os.WriteFile(files[0], good[:len(good)-2], 0o600); err != nil { // our entry is in it still
		t.Fatal(err)
	}
	wait(t, "culvert check says what is wrong", func() error {
		out, err := m.culvert(t.Context(), "check")
		if err == nil {
			return errors.New("it is content")
		}
		return lacks(out, "lacks permissions, as ClusterRoleBinding culvert-node is missing", "/etc/cni/net.d/"+filepath.Base(files[0])+" is not valid")
	})
	begin := time.Now()
	out, err := m.culvert(t.Context(), "uninstall")
	if took := time.Since(begin); err == nil || took > time.Minute {
		t.Errorf("it took %v: %v", took, err)
	}
	if err := lacks(out, "pods of culvert-node do not end", "on "+name+": has done its work and ended", "FailedKillPod", "left on node "+name, "may have an entry of culvert-cni"); err != nil {
		t.Error(err)
	}
	m.here = false
	if err := mend(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the pods are gone", func() error {
		list, err := shared.client.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
}

// lacks says which parts are not in a text.
func lacks(text string, parts ...string) error {
	for _, part := range parts {
		if !contains(text, part) {
			return fmt.Errorf("%q is not in:\n%s", part, text)
		}
	}
	return nil
}

// Whoever deletes manifests in any order takes the agents' permissions away first. They leave the pods all the same.
func TestUninstallWithoutPermissions(t *testing.T) {
	uninstallWithout(t, func() {
		for _, kind := range []string{"clusterrolebinding", "clusterrole"} {
			if _, err := kubectl(t.Context(), nil, "delete", kind, "culvert-node", "culvert-controller"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := kubectl(t.Context(), nil, "delete", "rolebinding,role", "-n", system, "--all"); err != nil {
			t.Fatal(err)
		}
	})
}

// Or their account, and the API server does not know them any more when they end.
func TestUninstallWithoutAccount(t *testing.T) {
	uninstallWithout(t, func() {
		accounts := shared.client.CoreV1().ServiceAccounts(system)
		token, err := accounts.CreateToken(t.Context(), "culvert-node", &authv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		known := func() (bool, error) { // the server remembers for some seconds whom it has known
			review := &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token.Status.Token}}
			review, err := shared.client.AuthenticationV1().TokenReviews().Create(t.Context(), review, metav1.CreateOptions{})
			return err == nil && review.Status.Authenticated, err
		}
		if ok, err := known(); !ok {
			t.Fatalf("the account is not known: %v", err)
		}
		if err := accounts.Delete(t.Context(), "culvert-node", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wait(t, "the account is not known any more", func() error {
			ok, err := known()
			if ok {
				err = errors.New("it is known")
			}
			return err
		})
	})
}

// uninstallWithout uninstalls when something of the agents was deleted, and wants no pod to notice.
func uninstallWithout(t *testing.T, deletePart func()) {
	t.Helper()
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	wantTLS(t, client, server)
	load := client.start("load", "--pause=5ms", "http://"+server.ip+":8080/")
	deletePart()
	if err := m.uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.mustGet("http://" + server.ip + ":8080/")
	t.Logf("%d requests", load.faultless().Requests)
	if shared.nodes != nil && (client.captured() || server.captured()) {
		t.Error("rules stay in a pod: its traffic is refused for ever")
	}
	fresh := ns.run("fresh", onNode(n2)) // the CNI plugin keeps nobody from starting
	client.mustGet("http://" + fresh.ip + ":8080/")
}

// picture is what can be seen of a place: name of a fact to its value.
type picture map[string]string

// Uninstalling puts back what was there: pods serve on without a restart, and no rule, route, sysctl, listener, annotation,
// mount or file differs from before.
func TestUninstallLeavesNothing(t *testing.T) {
	if err := shared.mesh.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	needNodes(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	client, server := ns.run("client", onNode(n1)), ns.run("server", onNode(n2))
	ns.service("server", nil)
	client.reach("http://server/")
	pods := []*app{client, server}
	before := takePicture(t, pods)
	containers := []string{client.container(), server.container()}

	m := mesh(t)
	client.enrolled()
	server.enrolled()
	wantTLS(t, client, server)
	during := takePicture(t, pods)
	if len(differences(before, during)) < 10 {
		t.Errorf("with the mesh on hardly anything looks different: the comparison proves nothing: %v", differences(before, during))
	}
	load := client.start("load", "http://"+server.ip+":8080/")
	if err := m.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.reach("http://server/")
	got := load.faultless()
	t.Logf("%d requests while it was uninstalled", got.Requests)
	if now := []string{client.container(), server.container()}; !slices.Equal(now, containers) {
		t.Errorf("containers were %v and are %v", containers, now)
	}
	var left []string
	wait(t, "everything looks as before", func() error {
		if left = differences(before, takePicture(t, pods)); len(left) > 0 {
			return fmt.Errorf("%d differences:\n%s", len(left), strings.Join(left, "\n"))
		}
		return nil
	})
}

func takePicture(t *testing.T, pods []*app) picture {
	t.Helper()
	p := make(picture)
	for _, a := range pods {
		pid, err := processOf(a.uid)
		if err != nil {
			t.Fatal(err)
		}
		p.namespaceFacts(t, "pod "+a.name, fmt.Sprintf("/proc/%d/ns/net", pid))
		object, err := a.get()
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range object.Annotations {
			p["pod "+a.name+" annotation "+k] = v
		}
		for k, v := range object.Labels {
			p["pod "+a.name+" label "+k] = v
		}
	}
	for _, name := range shared.nodes.Nodes() {
		p.namespaceFacts(t, "node "+name, shared.nodes.Node(name).NetNS())
		p.nodeFacts(t, name)
	}
	p.clusterFacts(t)
	return p
}

// changing are facts of a namespace that change by themselves, or with other pods and services of the node.
var changing = regexp.MustCompile(`KUBE-|kube-proxy|cali|veth|nf_conntrack_count|\.neigh\.|conf\.veth|stable_secret|expires|random|\bts\b`)

// namespaceFacts are rules, routes, settings and listeners of a network namespace.
func (p picture) namespaceFacts(t *testing.T, what, netns string) {
	t.Helper()
	lines := map[string][]string{
		"nft":      {"nft", "list", "tables"},
		"rule":     {"ip", "rule"},
		"rule6":    {"ip", "-6", "rule"},
		"route":    {"ip", "route", "show", "table", "all"},
		"route6":   {"ip", "-6", "route", "show", "table", "all"},
		"address":  {"ip", "-o", "addr", "show", "scope", "global"},
		"listener": {"ss", "-Htln"},
		"sysctl":   {"sysctl", "-a", "--pattern", "^net\\."},
	}
	for kind, args := range lines {
		out, err := command(t.Context(), append([]string{"nsenter", "--net=" + netns}, args...)...)
		if err != nil && kind != "sysctl" { // some settings cannot be read
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			line = strings.Join(strings.Fields(line), " ")
			if line != "" && !strings.HasPrefix(line, "sysctl:") && !changing.MatchString(line) {
				key, value, _ := strings.Cut(line, " = ")
				p[what+" "+kind+" "+key] = value
			}
		}
	}
}

// nodeFacts are files and mounts of a node: whatever it has ever written lies in its own layer. What the kubelet and the
// runtime write for every pod is left out.
func (p picture) nodeFacts(t *testing.T, name string) {
	t.Helper()
	m := shared.nodes.Node(name)
	upper := filepath.Join(m.Dir(), "upper")
	err := filepath.WalkDir(upper, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is gone already
		}
		inside := strings.TrimPrefix(file, upper)
		for _, busy := range []string{"/var/log/pods", "/var/log/containers", "/var/lib/cni", "/root/.kube"} {
			if inside == busy {
				return fs.SkipDir
			}
		}
		p["node "+name+" file "+inside] = describe(file, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const rest = `find /run -xdev \( -name '*culvert*' -o -name '*istio*' \); grep -E 'culvert-node|culvert-cni|/run/culvert|istio' /proc/1/mounts; true`
	out, err := m.Command(t.Context(), "sh", "-c", rest).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		p["node "+name+" has "+strings.TrimSpace(line)] = "there"
	}
}

// describe is what a file is: its mode and what it holds.
func describe(file string, e fs.DirEntry) string {
	info, err := e.Info()
	if err != nil || !info.Mode().IsRegular() {
		return e.Type().String()
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%v %x", info.Mode(), sha256.Sum256(content))
}

// clusterFacts are the objects that an installation makes outside of its namespace, and what it writes on others'. Custom
// resource definitions stay, as documented.
func (p picture) clusterFacts(t *testing.T) {
	t.Helper()
	const kinds = "clusterroles,clusterrolebindings,validatingwebhookconfigurations,mutatingwebhookconfigurations,priorityclasses,csidrivers,runtimeclasses,validatingadmissionpolicies,validatingadmissionpolicybindings"
	for _, args := range [][]string{
		{"get", kinds, "-o", "name"},
		{"get", "configmaps,secrets,serviceaccounts,roles,rolebindings,leases,services,endpointslices", "-A", "-o", `jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\n"}{end}`},
		{"get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.labels} {.spec.taints}{"\n"}{end}`},
		{"get", "namespaces", "-o", `jsonpath={range .items[?(@.status.phase=="Active")]}{.metadata.name} {.metadata.labels} {.metadata.annotations}{"\n"}{end}`},
	} {
		out, err := kubectl(context.WithoutCancel(t.Context()), nil, args...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); line != "" && !foreign(line) {
				p["cluster "+line] = "there"
			}
		}
	}
}

// foreign are objects of namespaces that earlier tests are still losing.
func foreign(line string) bool {
	return strings.Contains(line, "e2e-") || strings.Contains(line, "/default/kubernetes-")
}

// differences are what one picture has and the other has not, or has otherwise.
func differences(before, after picture) []string {
	var list []string
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		was, had := before[key]
		is, has := after[key]
		switch {
		case had && !has:
			list = append(list, "gone: "+key+" "+was)
		case !had && has:
			list = append(list, "new: "+key+" "+is)
		case was != is:
			list = append(list, "changed: "+key+": "+was+" -> "+is)
		}
	}
	return list
}
