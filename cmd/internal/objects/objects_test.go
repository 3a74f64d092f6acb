package objects_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/objects"
)

const two = `
# two documents and an empty one
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
---
apiVersion: v1
kind: ServiceList
items:
- apiVersion: v1
  kind: Service
  metadata: {name: s, namespace: a}
  spec: {ports: [{port: 80}]}
`

func names(all []*unstructured.Unstructured) string {
	var out []string
	for _, u := range all {
		out = append(out, u.GetKind()+"/"+u.GetName())
	}
	return strings.Join(out, " ")
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"b.yaml": two, "a.json": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}`, "notes.txt": "not read",
		"deep/c.yml": "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := objects.Files([]string{dir, objects.Stdin}, strings.NewReader("{apiVersion: v1, kind: Secret, metadata: {name: i}}"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "Pod/p Namespace/a Service/s Node/n1 Secret/i"; names(got) != want {
		t.Errorf("got %s, want %s", names(got), want)
	}
	ports, _, _ := unstructured.NestedSlice(got[2].Object, "spec", "ports")
	if port := ports[0].(map[string]any)["port"]; port != int64(80) {
		t.Errorf("port is %T %v, want int64", port, port)
	}
	if _, err := objects.Files([]string{filepath.Join(dir, "none")}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no-object":  "{a: 1}",
		"no-mapping": "- 1\n",
		"no-yaml":    "a: b: c: [\n",
		"bad-item":   "{apiVersion: v1, kind: List, items: [3]}",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := objects.Files([]string{objects.Stdin}, strings.NewReader(text)); err == nil {
				t.Errorf("read %v", got)
			}
		})
	}
}

func TestCluster(t *testing.T) {
	resource := func(name string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Version: "v1", Resource: name}
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		resource("pods"): "PodList", resource("services"): "ServiceList",
	})
	for _, name := range []string{"x", "y"} {
		pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}}}
		if _, err := client.Resource(resource("pods")).Namespace("a").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := objects.Cluster(context.WithoutCancel(t.Context()), &access.Access{Dynamic: client}, []schema.GroupVersionResource{resource("pods"), resource("services")})
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Fields(names(got))
	slices.Sort(all)
	if want := "Pod/x Pod/y"; strings.Join(all, " ") != want {
		t.Errorf("got %v, want %s", all, want)
	}
}

// A list that takes too long begins again; what fails otherwise is told.
func TestClusterPages(t *testing.T) {
	pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{pods: "PodList"})
	page := func(next string, names ...string) *unstructured.UnstructuredList {
		l := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "PodList", "metadata": map[string]any{"continue": next}}}
		for _, name := range names {
			l.Items = append(l.Items, unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name}}})
		}
		return l
	}
	asked := 0
	client.PrependReactor("list", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		switch asked++; asked {
		case 1:
			return true, page("more", "x"), nil
		case 2:
			return true, nil, apierrors.NewResourceExpired("too old")
		case 3:
			return true, page("more", "x", "y"), nil
		case 4:
			return true, page("", "z"), nil
		}
		return true, nil, apierrors.NewResourceExpired("at once")
	})
	a := &access.Access{Dynamic: client}
	got, err := objects.Cluster(t.Context(), a, []schema.GroupVersionResource{pods})
	if want := "Pod/x Pod/y Pod/z"; err != nil || names(got) != want {
		t.Errorf("got %s, %v, want %s", names(got), err, want)
	}
	if _, err := objects.Cluster(t.Context(), a, []schema.GroupVersionResource{pods}); err == nil || !strings.Contains(err.Error(), "list pods: ") {
		t.Errorf("a list that does not begin: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(two))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"a":1.5},{"b":1e300}]}`))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		docs, err := objects.Read("f", strings.NewReader(string(text)))
		if err != nil {
			return
		}
		for _, d := range docs {
			u := unstructured.Unstructured{Object: d.Object}
			_ = u.DeepCopy() // fails on types that objects do not have
			d.IsObject()
		}
	})
}
