package authz

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
)

// town is what the tests happen in: two namespaces in the mesh, one outside of it.
const town = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: legacy}
---
apiVersion: v1
kind: Namespace
metadata: {name: culvert-system}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {labels: {app: web, tier: front}}, spec: {serviceAccountName: web, containers: [{name: c, ports: [{containerPort: 8080}]}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec: {template: {metadata: {labels: {app: cart}}, spec: {serviceAccountName: cart, containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 9090}]}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: teller-0, namespace: bank, labels: {app: teller}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {serviceAccountName: teller, containers: [{name: c}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: legacy, labels: {app: old}}
spec: {containers: [{name: c}]}
status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}], conditions: [{type: Ready, status: "True"}]}
`

func parse(t testing.TB, text string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for doc := range strings.SplitSeq(text, "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		u := &unstructured.Unstructured{}
		if err := k8syaml.NewYAMLOrJSONDecoder(strings.NewReader(doc), 4096).Decode(&u.Object); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		out = append(out, u)
	}
	return out
}

// build makes the town's world with more objects in it.
func build(t testing.TB, more string) *World {
	t.Helper()
	w, err := New(append(parse(t, town), parse(t, more)...), "shop", Settings{})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// authzPolicy is an AuthorizationPolicy of namespace shop with this spec.
func authzPolicy(name, spec string) string {
	return "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

const strict = "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n"

func mustRef(t testing.TB, text string) Ref {
	t.Helper()
	r, err := ParseRef(text, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseRef(t *testing.T) {
	for text, want := range map[string]string{
		"pod/web-0": "shop/pod/web-0", "deploy/web": "shop/deployment/web", "bank/sts/db": "bank/statefulset/db", "svc/cart": "shop/service/cart",
		"app=web": "shop/app=web", "bank/app=teller,tier=x": "bank/app=teller,tier=x", "app.kubernetes.io/name=web": "shop/app.kubernetes.io/name=web",
	} {
		if got, err := ParseRef(text, "shop"); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "web", "secret/x", "a/b/c/d", "pod/", "/x", "app!=web", "=x"} {
		if got, err := ParseRef(text, "shop"); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}

func TestFindSaysWhatWasMeant(t *testing.T) {
	w := build(t, `
apiVersion: v1
kind: Namespace
metadata: {name: empty}
---
apiVersion: v1
kind: Service
metadata: {name: away, namespace: shop}
spec: {selector: {app: away}, ports: [{port: 80}]}
`)
	for text, want := range map[string]string{
		"deployment/wbe": "did you mean web?", "bnak/pod/x": "namespace bnak is not known; did you mean bank?", "bank/pod/teler-0": "did you mean teller-0?",
		"default/pod/x": "namespace default is not known: give another with -n, or as NAMESPACE/KIND/NAME",
		"empty/pod/x":   "no pods of empty/pod/x in what was read", "service/crat": "did you mean cart?", "service/away": "no pods of shop/service/away in what was read",
		"app=nobody": "no pods of shop/app=nobody",
	} {
		if _, err := w.find(mustRef(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// A CronJob whose pods have all ended makes others.
func TestPodsThatHaveEnded(t *testing.T) {
	w := build(t, `
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: nightly}}, spec: {containers: [{name: c}]}}}}}
---
apiVersion: v1
kind: Pod
metadata: {name: nightly-29000000-x, namespace: shop, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: nightly-29000000, uid: u, controller: true}]}
spec: {containers: [{name: c}]}
status: {phase: Succeeded, podIP: 10.0.0.7, podIPs: [{ip: 10.0.0.7}]}
`)
	found, err := w.find(mustRef(t, "cronjob/nightly"))
	if err != nil || len(found) != 1 || !found[0].template {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestOwner(t *testing.T) {
	controller := true
	for _, tt := range []struct{ kind, name, hash, want string }{
		{"", "", "", "pod/p"},
		{"ReplicaSet", "web-5c9f", "5c9f", "deployment/web"},
		{"ReplicaSet", "web-5c9f", "", "replicaset/web-5c9f"},
		{"StatefulSet", "db", "", "statefulset/db"},
		{"Job", "nightly-29000000", "", "cronjob/nightly"},
		{"Job", "nightly-2900000", "", "job/nightly-2900000"},
		{"Job", "by-hand-202611220900", "", "job/by-hand-202611220900"},
		{"Job", "nightly-2900000x", "", "job/nightly-2900000x"},
		{"Job", "29000000", "", "job/29000000"},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"pod-template-hash": tt.hash}}}
		if tt.kind != "" {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: tt.kind, Name: tt.name, Controller: &controller}}
		}
		if got := ownerOf(p).String(); got != tt.want {
			t.Errorf("of %s %s: %s, want %s", tt.kind, tt.name, got, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		known      []string
	}{
		{"shpo", "shop", []string{"shop", "bank"}},
		{"x", "", []string{"y"}},
		{"web", "", []string{"cart", "teller"}},
		{"reviews", "review", []string{"review", "ratings"}},
		{"", "", []string{"a"}},
	} {
		if got := nearest(tt.name, tt.known); got != tt.want {
			t.Errorf("nearest(%q, %v) = %q, want %q", tt.name, tt.known, got, tt.want)
		}
	}
}
