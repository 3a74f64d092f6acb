package installer_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/culvert-mesh/culvert/deploy"
)

const gatewayBundle = "gateway.networking.k8s.io/bundle-version"

// definition makes one with annotations, API versions and, optionally, another owner of its specification.
func definition(annotations map[string]string, served []string, owner string) *unstructured.Unstructured {
	crd := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "things.example.org"},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}},
	}}
	crd.SetAnnotations(annotations)
	var versions []any
	for _, v := range served {
		versions = append(versions, map[string]any{"name": v, "served": true})
	}
	_ = unstructured.SetNestedSlice(crd.Object, versions, "spec", "versions")
	if owner != "" {
		crd.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: owner, FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)}})
	}
	return crd
}

func TestDefinitionsAreNeverLowered(t *testing.T) {
	at := func(key, version string) map[string]string { return map[string]string{key: version} }
	tests := []struct {
		name    string
		have    *unstructured.Unstructured
		ours    *unstructured.Unstructured
		applied bool
		note    string
	}{
		{"absent", nil, definition(at(gatewayBundle, "v1.6.3"), nil, ""), true, ""},
		{"older", definition(at(gatewayBundle, "v1.5.0"), nil, ""), definition(at(gatewayBundle, "v1.6.3"), nil, ""), true, "raised from 1.5.0 to 1.6.3"},
		{"same", definition(at(gatewayBundle, "v1.6.3"), nil, ""), definition(at(gatewayBundle, "v1.6.3"), nil, ""), false, ""},
		{"newer", definition(at(gatewayBundle, "v1.10.0"), nil, ""), definition(at(gatewayBundle, "v1.6.3"), nil, ""), false, ""},
		{"candidate-of-ours", definition(at(gatewayBundle, "v1.6.3-rc.1"), nil, ""), definition(at(gatewayBundle, "v1.6.3"), nil, ""), true, "raised"},
		{"experimental", definition(map[string]string{gatewayBundle: "v1.2.0", "gateway.networking.k8s.io/channel": "experimental"}, nil, ""), definition(at(gatewayBundle, "v1.6.3"), nil, ""), false, "experimental channel"},
		{"unknown-that-serves", definition(nil, []string{"v1", "v1beta1"}, ""), definition(at(deploy.BundleAnnotation, "v1.31.1"), []string{"v1"}, ""), false, ""},
		{"unknown-that-lacks", definition(nil, []string{"v1beta1"}, ""), definition(at(deploy.BundleAnnotation, "v1.31.1"), []string{"v1", "v1beta1"}, ""), false, "does not serve v1:"},
		{"nonsense", definition(at(deploy.BundleAnnotation, "new"), []string{"v1"}, ""), definition(at(deploy.BundleAnnotation, "v1.31.1"), []string{"v1"}, ""), false, ""},
		{"ours-older", definition(at(deploy.BundleAnnotation, "v1.30.0"), []string{"v1"}, "culvert"), definition(at(deploy.BundleAnnotation, "v1.31.1"), []string{"v1"}, ""), true, "raised"},
		// Somebody applied another version over ours: our mark says nothing about it.
		{"taken-over", definition(at(deploy.BundleAnnotation, "v1.30.0"), []string{"v1"}, "helm"), definition(at(deploy.BundleAnnotation, "v1.31.1"), []string{"v1"}, ""), false, ""},
	}
	gvr := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			if tt.have != nil {
				if err := r.dynamic.Tracker().Create(gvr, tt.have, ""); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.ApplyCRDs(t.Context(), []*unstructured.Unstructured{tt.ours}); err != nil {
				t.Fatal(err)
			}
			applied := false
			for _, a := range r.dynamic.Actions() {
				applied = applied || a.GetVerb() == "patch"
			}
			if applied != tt.applied {
				t.Errorf("applied: %v, want %v", applied, tt.applied)
			}
			if !strings.Contains(r.out.String(), tt.note) {
				t.Errorf("output %q lacks %q", r.out, tt.note)
			}
		})
	}
}
