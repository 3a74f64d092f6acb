package installer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/culvert-mesh/culvert/deploy"
)

// fieldManager names this program in server-side apply.
const fieldManager = "culvert"

// establishTimeout bounds the wait for a definition to be served.
const establishTimeout = 30 * time.Second

// crdResource is the resource that definitions themselves are.
func crdResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
}

// ApplyCRDs brings the definitions up to those of this program: creates what is absent, replaces what is older, leaves
// all else.
func (i *Installer) ApplyCRDs(ctx context.Context, crds []*unstructured.Unstructured) error {
	client := i.Access.Dynamic.Resource(crdResource())
	var due []*unstructured.Unstructured
	for _, crd := range crds { // all are read before the first is written
		have, err := client.Get(ctx, crd.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			have = nil
		case err != nil:
			return fmt.Errorf("read definition %s: %w", crd.GetName(), i.Access.Explain(err))
		}
		decision := decide(have, crd)
		if decision.note != "" {
			i.say("  %s: %s", crd.GetName(), decision.note)
		}
		if decision.apply {
			due = append(due, crd)
		}
	}
	var applied []string
	for _, crd := range due {
		options := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
		if _, err := client.Apply(ctx, crd.GetName(), crd, options); err != nil {
			return fmt.Errorf("apply definition %s: %w", crd.GetName(), i.Access.Explain(err))
		}
		applied = append(applied, crd.GetName())
	}
	i.say("custom resource definitions: %d applied, %d left as they are", len(applied), len(crds)-len(applied))
	return i.established(ctx, applied)
}

// decision is what happens to one definition; the note says what is not obvious.
type decision struct {
	apply bool
	note  string
}

// decide compares what the cluster has with what this program has. It never lowers: in doubt the cluster's stays.
func decide(have, ours *unstructured.Unstructured) decision {
	if have == nil {
		return decision{apply: true}
	}
	if experimental(have) && !experimental(ours) {
		return decision{note: "kept: it is of the experimental channel"}
	}
	haveVersion, ourVersion := bundleVersion(have), bundleVersion(ours)
	if haveVersion == nil || ourVersion == nil {
		if missing := missingVersions(have, ours); len(missing) > 0 {
			return decision{note: "kept, though it does not serve " + strings.Join(missing, ", ") + ": it does not say its version; whoever installed it has to upgrade it"}
		}
		return decision{}
	}
	if haveVersion.LessThan(ourVersion) {
		return decision{apply: true, note: fmt.Sprintf("raised from %s to %s", haveVersion, ourVersion)}
	}
	return decision{}
}

// bundleVersion returns the version that a definition says it is of, or nil. Our own mark stays when somebody else applies
// another version over ours, so it counts only while nobody has.
func bundleVersion(crd *unstructured.Unstructured) *version.Version {
	keys := []string{"gateway.networking.k8s.io/bundle-version", "policy.networking.k8s.io/bundle-version"}
	if !changedByOthers(crd) {
		keys = append(keys, deploy.BundleAnnotation)
	}
	for _, key := range keys {
		if v, err := version.ParseSemantic(crd.GetAnnotations()[key]); err == nil {
			return v
		}
	}
	return nil
}

// changedByOthers reports whether somebody else owns a part of the specification.
func changedByOthers(crd *unstructured.Unstructured) bool {
	for _, entry := range crd.GetManagedFields() {
		if entry.Manager == fieldManager || entry.Subresource != "" || entry.FieldsV1 == nil {
			continue
		}
		if strings.Contains(entry.FieldsV1.GetRawString(), `"f:spec"`) {
			return true
		}
	}
	return false
}

func experimental(crd *unstructured.Unstructured) bool {
	for key, value := range crd.GetAnnotations() {
		if strings.HasSuffix(key, "networking.k8s.io/channel") && value == "experimental" {
			return true
		}
	}
	return false
}

// missingVersions returns the API versions that ours serves and have does not.
func missingVersions(have, ours *unstructured.Unstructured) []string {
	served := servedVersions(have)
	var missing []string
	for name := range servedVersions(ours) {
		if !served[name] {
			missing = append(missing, name)
		}
	}
	return missing
}

func servedVersions(crd *unstructured.Unstructured) map[string]bool {
	served := map[string]bool{}
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return served
	}
	for _, v := range versions {
		entry, ok := v.(map[string]any)
		if !ok {
			continue
		}
		name, _ := entry["name"].(string)
		if on, _ := entry["served"].(bool); on && name != "" {
			served[name] = true
		}
	}
	return served
}

// established waits until the server serves the definitions, so that what follows can use them.
func (i *Installer) established(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, establishTimeout, errors.New("the server does not serve it"))
	defer cancel()
	for _, name := range names {
		err := i.poll(ctx, func() (bool, error) {
			crd, err := i.Access.Dynamic.Resource(crdResource()).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			return hasCondition(crd, "Established"), nil
		})
		if err != nil {
			return fmt.Errorf("wait for definition %s: %w", name, i.Access.Explain(err))
		}
	}
	return nil
}

func hasCondition(object *unstructured.Unstructured, kind string) bool {
	conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
	if err != nil {
		return false
	}
	for _, c := range conditions {
		if entry, ok := c.(map[string]any); ok && entry["type"] == kind && entry["status"] == "True" {
			return true
		}
	}
	return false
}

// poll calls done until it says so, fails, or ctx ends, whose cause is the error then.
func (i *Installer) poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(i.Poll)
	defer ticker.Stop()
	for {
		if over, err := done(); over || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
