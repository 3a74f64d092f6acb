package installer_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/installer"
	"github.com/culvert-mesh/culvert/deploy"
)

func TestUpgrade(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	if err := r.Upgrade(t.Context(), options()); !errors.Is(err, installer.ErrNotInstalled) {
		t.Fatalf("got %v", err)
	}
	o := options()
	o.Values = map[string]any{"trustDomain": "example.org"}
	if err := r.Install(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.use("v2")
	o.Values = map[string]any{"logLevel": "debug"}
	if err := r.Upgrade(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	rel, err := r.helm.Releases.Last("culvert")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`TRUST_DOMAIN: "example.org"`, "--log-level=debug", "image: culvert:v2"} {
		if !strings.Contains(rel.Manifest, want) {
			t.Errorf("manifest lacks %s", want)
		}
	}
	o = options()
	o.ResetValues = true
	if err := r.Upgrade(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if rel, err = r.helm.Releases.Last("culvert"); err != nil || !strings.Contains(rel.Manifest, `TRUST_DOMAIN: "cluster.local"`) {
		t.Errorf("values were not reset: %v", err)
	}
}

func TestUpgradeRollsBack(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	if err := r.Install(t.Context(), options()); err != nil {
		t.Fatal(err)
	}
	r.use("v2")
	// From now on nothing is ready, until the old revision is back.
	r.kube.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		rel, err := r.helm.Releases.Last("culvert")
		if err != nil {
			return false, nil, nil
		}
		agents := int32(3)
		if strings.Contains(rel.Manifest, "culvert:v2") {
			agents = 1
		}
		return true, workloads(2, agents)[1], nil
	})
	o := soon()
	err := r.Upgrade(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "rolled back to revision 1") || strings.Contains(err.Error(), "not ready either") {
		t.Fatalf("got %v", err)
	}
	rel, err := r.helm.Releases.Last("culvert")
	if err != nil || rel.Version != 3 || !strings.Contains(rel.Manifest, "culvert:v1") {
		t.Errorf("release: %v", err)
	}
}

// What can be refused is refused before anything is in the cluster, also the definitions.
func TestUpgradeRefusesFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(*rig, *installer.Options)
		want    string
	}{
		"typo": {func(_ *rig, o *installer.Options) { o.Values = map[string]any{"agent": map[string]any{"dnss": true}} }, "dnss"},
		"wrong-value": {func(_ *rig, o *installer.Options) {
			o.Values = map[string]any{"netpol": map[string]any{"enforce": "maybe"}}
		}, "read values: netpol.enforce: "},
		"kind-not-there": {func(r *rig, _ *installer.Options) { r.client.BuildError = errors.New("no matches for kind") }, "no matches for kind"},
		"definitions":    {func(r *rig, _ *installer.Options) { r.denied["customresourcedefinitions"] = true }, "create customresourcedefinitions, patch customresourcedefinitions"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, workloads(2, 3)...)
			if err := r.Install(t.Context(), options()); err != nil {
				t.Fatal(err)
			}
			r.dynamic.ClearActions()
			r.kube.ClearActions()
			o := options()
			o.CRDs = installer.ApplyCRDs
			tt.prepare(r, &o)
			if err := r.Upgrade(t.Context(), o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v", err)
			}
			r.wroteNothing()
			if rel, err := r.helm.Releases.Last("culvert"); err != nil || rel.Version != 1 {
				t.Errorf("release: %v, %v", rel, err)
			}
		})
	}
}

// Definitions alone have nothing to do with the chart, which may want some that are not there yet.
func TestUpgradeOnlyDefinitions(t *testing.T) {
	r := newRig(t, workloads(2, 3)...)
	if err := r.Install(t.Context(), options()); err != nil {
		t.Fatal(err)
	}
	r.client.BuildError = errors.New("no matches for kind")
	o := options()
	o.CRDs = installer.OnlyCRDs
	err := r.Upgrade(t.Context(), o)
	if errors.Is(err, deploy.ErrNoCRDs) {
		t.Skip("this build has no definitions")
	}
	if err != nil || len(r.dynamic.Actions()) == 0 {
		t.Errorf("definitions: %v, %d requests", err, len(r.dynamic.Actions()))
	}
	if rel, err := r.helm.Releases.Last("culvert"); err != nil || rel.Version != 1 {
		t.Errorf("release: %v, %v", rel, err)
	}
}

// Agents go first and are waited for; what the controller made goes too, the definitions never do.
func TestUninstall(t *testing.T) {
	made := []runtime.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "culvert-ca", Namespace: namespace}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "culvert-ca-root", Namespace: namespace}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", Labels: map[string]string{"app.kubernetes.io/managed-by": "culvert"}}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "web-hbone-1", Namespace: "shop", Labels: map[string]string{
			"app.kubernetes.io/managed-by": "culvert", "culvert.io/companion-of": "uid",
		}}},
	}
	tests := []struct {
		name   string
		o      installer.UninstallOptions
		ca, ns bool
	}{
		{"all", installer.UninstallOptions{Timeout: time.Minute}, false, true},
		{"keep-ca", installer.UninstallOptions{Timeout: time.Minute, KeepCA: true}, true, true},
		{"namespace", installer.UninstallOptions{Timeout: time.Minute, DeleteNamespace: true}, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, append(workloads(2, 3), made...)...)
			if err := r.Install(t.Context(), options()); err != nil {
				t.Fatal(err)
			}
			r.podsLeaveAfter(3)
			if err := r.Uninstall(t.Context(), tt.o); err != nil {
				t.Fatal(err)
			}
			if _, err := r.helm.Releases.Last("culvert"); err == nil {
				t.Error("the release is still there")
			}
			_, err := r.kube.CoreV1().Secrets(namespace).Get(t.Context(), "culvert-ca", metav1.GetOptions{})
			if got := !apierrors.IsNotFound(err); got != tt.ca {
				t.Errorf("authority is there: %v", got)
			}
			_, err = r.kube.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
			if got := !apierrors.IsNotFound(err); got != tt.ns {
				t.Errorf("namespace is there: %v", got)
			}
			policies, err := r.kube.NetworkingV1().NetworkPolicies("").List(t.Context(), metav1.ListOptions{})
			if err != nil || len(policies.Items) != 1 || policies.Items[0].Name != "web" {
				t.Errorf("of a user's policy and its companion there are %v %v", policies.Items, err)
			}
			if got := len(r.dynamic.Actions()); got != 0 {
				t.Errorf("definitions were touched: %v", r.dynamic.Actions())
			}
		})
	}
}
