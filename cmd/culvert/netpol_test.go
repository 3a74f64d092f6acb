package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	k8stesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/objects"
	"github.com/culvert-mesh/culvert/deploy"
)

const netpolSamples = "../../deploy/samples/netpol"

// status is what the program would exit with.
func status(err error) int {
	if err == nil {
		return 0
	}
	return exitStatus(err)
}

// The samples lack the port; written back with it they do not, and nothing else of them has changed.
func TestNetpolSamples(t *testing.T) {
	out, err := culvert(t, "netpol", "check", "-f", netpolSamples)
	if status(err) != 1 {
		t.Errorf("check exits with %d: %v", status(err), err)
	}
	for _, want := range []string{
		"NetworkPolicy bookstore/reviews: CUTS HBONE", "TCP 15008 is missing",
		`kubectl patch networkpolicy 'ratings' --namespace='bookstore' --type=json --patch='[{"op":"test","path":"/spec/ingress/0/ports","value":[{"protocol":"TCP","port":9080}]},{"op":"add","path":"/spec/ingress/0/ports/-","value":{"protocol":"TCP","port":15008}}]'`,
		"NetworkPolicy bookstore/default-deny: fine", "NetworkPolicy bookstore/dns: fine",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("check does not print %q:\n%s", want, out)
		}
	}
	out, err = culvert(t, "netpol", "check", "--wrong", "-f", netpolSamples)
	if status(err) != 1 || !strings.Contains(out, "bookstore/reviews: CUTS HBONE") || strings.Contains(out, ": fine") {
		t.Errorf("check --wrong exits with %d: %s", status(err), out)
	}
	printed, err := culvert(t, "netpol", "fix", "-f", netpolSamples)
	if status(err) != 0 {
		t.Fatalf("fix exits with %d: %v", status(err), err)
	}
	if n := strings.Count(printed, "{protocol: TCP, port: 15008}"); n != 6 {
		t.Errorf("fix adds %d entries, want 6", n)
	}
	if !strings.Contains(printed, "# All pods may ask for names.") {
		t.Error("comments are lost")
	}
	file := filepath.Join(t.TempDir(), "policies.yaml")
	if err := os.WriteFile(file, []byte(printed), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := culvert(t, "netpol", "check", "-f", file); status(err) != 0 {
		t.Errorf("after fix, check exits with %d:\n%s", status(err), out)
	}
	if again, err := culvert(t, "netpol", "fix", "-f", file); status(err) != 0 || again != printed {
		t.Errorf("a second fix exits with %d and prints\n%s", status(err), again)
	}
}

// copyOf puts the samples and more files into a directory.
func copyOf(t *testing.T, more map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(netpolSamples)); err != nil {
		t.Fatal(err)
	}
	for name, text := range more {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// With --apply the files are written, also in forms that a text cannot be inserted into; others are not touched.
func TestNetpolFixFiles(t *testing.T) {
	aliased := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: aliased, namespace: bookstore}\nspec:\n  podSelector: {}\n" +
		"  ingress:\n  - ports: &p [{port: 80}]\n  egress:\n  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]\n    ports: *p\n"
	list := `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "json", "namespace": "bookstore"}, "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}}]}`
	dir := copyOf(t, map[string]string{"aliased.yaml": aliased, "list.json": list, "notes.txt": "x", "values.yml": "not: an object\n"})
	out, err := culvert(t, "netpol", "fix", "--apply", "-f", dir)
	if status(err) != 0 {
		t.Fatalf("exits with %d: %v\n%s", status(err), err, out)
	}
	for _, name := range []string{"policies.yaml", "aliased.yaml", "list.json"} {
		if !strings.Contains(out, name+" patched") {
			t.Errorf("does not tell of %s:\n%s", name, out)
		}
	}
	if strings.Contains(out, "namespace.yaml") {
		t.Errorf("tells of a file without policies:\n%s", out)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if text := read("list.json"); !json.Valid([]byte(text)) || !strings.Contains(text, `[{"protocol": "TCP", "port": 15008}, {"port": 80}]`) {
		t.Errorf("JSON became %s", text)
	}
	if text := read("aliased.yaml"); strings.Count(text, "15008") != 1 {
		t.Errorf("the rule for kube-system shares a list with the other, and became\n%s", text)
	}
	if info, err := os.Stat(filepath.Join(dir, "list.json")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode is %v %v", info.Mode(), err)
	}
	if out, err := culvert(t, "netpol", "check", "-f", dir); status(err) != 0 {
		t.Errorf("after fix, check exits with %d:\n%s", status(err), out)
	}
	if out, err := culvert(t, "netpol", "fix", "--apply", "-f", dir); status(err) != 0 || out != "" {
		t.Errorf("a second fix exits with %d and says %s", status(err), out)
	}
}

// Files that are printed one after the other are one text of several documents, however they begin and end.
func TestNetpolFixPrintsFiles(t *testing.T) {
	dir := t.TempDir()
	policy := func(name string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + "}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}"
	}
	tabs := "{\n\t\"apiVersion\": \"networking.k8s.io/v1\",\n\t\"kind\": \"NetworkPolicy\",\n\t\"metadata\": {\"name\": \"tabs\"},\n" +
		"\t\"spec\": {\"podSelector\": {}, \"ingress\": [{\n\t\t\"ports\": [\n\t\t\t{\"port\": 80}\n\t\t]\n\t}]}\n}\n"
	for name, text := range map[string]string{"a.yaml": policy("a"), "b.yaml": "---\n" + policy("b"), "c.yaml": policy("c") + "\n", "d.json": tabs, "e.yaml": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	printed, err := culvert(t, "netpol", "fix", "-f", dir)
	if status(err) != 0 {
		t.Fatalf("exits with %d: %v", status(err), err)
	}
	docs, err := objects.Read("", strings.NewReader(printed))
	var names []string
	for _, d := range docs {
		names = append(names, (&unstructured.Unstructured{Object: d.Object}).GetName())
	}
	if want := []string{"a", "b", "c", "tabs"}; err != nil || !slices.Equal(names, want) || strings.Count(printed, "15008") != len(want) {
		t.Errorf("%v, documents %v:\n%s", err, names, printed)
	}
	if want := strings.Replace(tabs, `"ports": [`, `"ports": [{"protocol": "TCP", "port": 15008}, `, 1); !strings.Contains(printed, want) {
		t.Errorf("JSON is not as it was, want\n%s\nin\n%s", want, printed)
	}
}

func TestNetpolTrouble(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(broken, []byte("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingres: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unversioned := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(unversioned, []byte("apiVersion: networking.k8s.io/v1/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"unknown flag", []string{"check", "--flag"}},
		{"takes flags alone", []string{"check", "x"}},
		{"no such file", []string{"check", "-f", "/nonexistent"}},
		{"ingres", []string{"check", "-f", broken}},
		{"ingres", []string{"fix", "-f", broken}},
		{"unexpected GroupVersion", []string{"check", "-f", unversioned}},
		{"unexpected GroupVersion", []string{"fix", "-f", unversioned}},
		{"no kubeconfig", []string{"check"}},
		{"no kubeconfig", []string{"fix", "--apply"}},
		{"--output=x", []string{"check", "-o", "x", "-f", netpolSamples}},
	} {
		if _, err := culvert(t, append([]string{"netpol"}, tt.args...)...); status(err) != 2 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: exits with %d: %v", tt.args, status(err), err)
		}
	}
}

// A companion whose policy has gone cuts nothing, and is not fixed by a patch.
func TestNetpolStaleCompanion(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.yaml")
	text := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, labels: {app.kubernetes.io/managed-by: culvert, culvert.io/companion-of: gone}}\n" +
		"spec: {podSelector: {}, ingress: [{ports: [{protocol: TCP, port: 15008}]}]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := culvert(t, "netpol", "check", "-f", file)
	if status(err) != 1 || err.Error() != "of 1 policies 0 cut the mesh, and 1 are stale companions" || !strings.Contains(out, "STALE COMPANION (the policy that it is a companion of does not exist: delete it") {
		t.Errorf("check exits with %d: %v\n%s", status(err), err, out)
	}
	if out, err := culvert(t, "netpol", "fix", "-f", file); status(err) != 1 || !strings.Contains(out, "cannot be fixed here") {
		t.Errorf("fix exits with %d: %v\n%s", status(err), err, out)
	}
}

// What an administrator denies cannot be fixed, and both commands say so.
func TestNetpolAdmin(t *testing.T) {
	dir := copyOf(t, map[string]string{"admin.yaml": `apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: high-ports}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 10000, end: 20000}}}}]}
`})
	out, err := culvert(t, "netpol", "fix", "--apply", "-f", dir)
	if status(err) != 1 || !strings.Contains(out, "ClusterNetworkPolicy high-ports cannot be fixed here") {
		t.Errorf("fix exits with %d:\n%s", status(err), out)
	}
	out, err = culvert(t, "netpol", "check", "-f", dir)
	if status(err) != 1 || !strings.Contains(out, "ClusterNetworkPolicy high-ports: CUTS HBONE") || !strings.Contains(out, "Leave 15008 out of its protocols") {
		t.Errorf("check exits with %d:\n%s", status(err), out)
	}
	out, err = culvert(t, "netpol", "check", "-f", dir, "-o", "json")
	var found []struct{ Name, State string }
	if json.Unmarshal([]byte(out), &found) != nil || status(err) != 1 || len(found) != 7 || found[6].Name != "high-ports" || found[6].State != "cut" {
		t.Errorf("as JSON it exits with %d:\n%s", status(err), out)
	}
}

// cluster is an API server in memory: namespace shop is in the mesh, other is not, and both have the same policy.
func netpolCluster(t *testing.T) (*access.Access, *fake.Clientset) {
	t.Helper()
	port, protocol := intstr.FromInt32(80), corev1.ProtocolTCP // as an API server stores it
	policy := func(namespace string) *networkingv1.NetworkPolicy {
		return &networkingv1.NetworkPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web", UID: "1", ResourceVersion: "7", Labels: map[string]string{"team": "a"}},
			Spec:       networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port, Protocol: &protocol}}}}},
		}
	}
	space := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	all := []runtime.Object{
		policy("shop"), policy("other"), policy("left-out"),
		space("shop", map[string]string{"istio.io/dataplane-mode": "ambient"}), space("other", nil), space("left-out", map[string]string{"istio.io/dataplane-mode": "ambient"}),
	}
	kube := fake.NewClientset(all...)
	agents := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: deploy.Namespace, Name: deploy.DaemonSet}}
	agents.Spec.Template.Spec.Containers = []corev1.Container{{Args: []string{"--exclude-namespaces=left-out", "--dns=false"}}}
	if err := kube.Tracker().Add(agents); err != nil {
		t.Fatal(err)
	}
	// Both clients show the same policies.
	dyn := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme.Scheme, map[schema.GroupVersionResource]string{
		{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"}: "ClusterNetworkPolicyList",
	}, all...)
	kube.PrependReactor("patch", "networkpolicies", func(action k8stesting.Action) (bool, runtime.Object, error) {
		_, _, err := k8stesting.ObjectReaction(dyn.Tracker())(action)
		return true, &networkingv1.NetworkPolicy{}, err
	})
	return &access.Access{Kube: kube, Dynamic: dyn, Server: "https://here"}, kube
}

// ask runs one of the commands against the cluster.
func ask(t *testing.T, a *access.Access, command func(connector) *cobra.Command, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command(func(kubeFlags) (*access.Access, error) { return a, nil })
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestNetpolCluster(t *testing.T) {
	a, kube := netpolCluster(t)
	out, err := ask(t, a, netpolCheckCommand)
	if status(err) != 1 || !strings.Contains(out, "NetworkPolicy shop/web: CUTS HBONE") ||
		!strings.Contains(out, "NetworkPolicy other/web: not of the mesh") || !strings.Contains(out, "NetworkPolicy left-out/web: not of the mesh (namespace left-out is excluded)") {
		t.Errorf("check exits with %d:\n%s", status(err), out)
	}
	if out, err := ask(t, a, netpolCheckCommand, "-n", "other"); status(err) != 0 || strings.Contains(out, "shop/web") {
		t.Errorf("of namespace other, check exits with %d:\n%s", status(err), out)
	}
	if out, err := ask(t, a, netpolCheckCommand, "-n", "other", "--assume-enrolled=other"); status(err) != 1 || !strings.Contains(out, "NetworkPolicy other/web: CUTS HBONE") {
		t.Errorf("as if other were labelled, check exits with %d:\n%s", status(err), out)
	}

	out, err = ask(t, a, netpolFixCommand)
	if want := "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  labels:\n    team: a\n  name: web\n  namespace: shop\nspec:\n  ingress:\n  - ports:\n    - port: 80\n      protocol: TCP\n    - port: 15008\n      protocol: TCP\n  podSelector: {}\n"; err != nil || out != want {
		t.Errorf("fix prints %v\n%s\nwant\n%s", err, out, want)
	}

	// Somebody else is faster once.
	disturbed := false
	kube.PrependReactor("patch", "networkpolicies", func(k8stesting.Action) (bool, runtime.Object, error) {
		if disturbed {
			return false, nil, nil
		}
		disturbed = true
		return true, nil, apierrors.NewInvalid(schema.GroupKind{}, "web", nil)
	})
	if out, err = ask(t, a, netpolFixCommand, "--apply"); err != nil || out != "NetworkPolicy shop/web patched\n" || !disturbed {
		t.Errorf("fix --apply says %v\n%s", err, out)
	}
	if out, err = ask(t, a, netpolCheckCommand); status(err) != 0 {
		t.Errorf("after fix, check exits with %d:\n%s", status(err), out)
	}
	if out, err = ask(t, a, netpolFixCommand, "--apply"); err != nil || out != "" {
		t.Errorf("a second fix says %v\n%s", err, out)
	}

	// A list that takes too long begins again, and no pod counts twice.
	pages := 0
	shop := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}}}
	kube.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		switch pages++; pages {
		case 1:
			return true, &corev1.PodList{ListMeta: metav1.ListMeta{Continue: "more"}, Items: []corev1.Pod{shop}}, nil
		case 2:
			return true, nil, apierrors.NewResourceExpired("too old")
		}
		return true, &corev1.PodList{Items: []corev1.Pod{shop}}, nil
	})
	in := &netpolInput{}
	if err := in.addPods(t.Context(), a); err != nil || pages != 3 || len(in.Pods) != 1 || len(in.Mesh.Networks) != 1 {
		t.Errorf("%d pages, pods %v of %v, %v", pages, in.Pods, in.Mesh.Networks, err)
	}
	kube.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("no"))
	})
	if _, err = ask(t, a, netpolCheckCommand); status(err) != 2 || !strings.Contains(err.Error(), "no permission") {
		t.Errorf("without the right to list pods: %v", err)
	}
}
