package status

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"

	"github.com/culvert-mesh/culvert/workload/source/kube"
)

// write applies the report's conditions and addresses. An object that is gone,
// or another one by now, is none of ours any more.
//
// Kubernetes merges conditions of its own kinds by type. In Istio's kinds the
// list is one value: there the conditions of others are written back with
// ours, under the resource version that they were read at.
func (w *Writer) write(ctx context.Context, r *kube.Report) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	client := w.client.Resource(r.Resource).Namespace(r.Namespace)
	live, err := find(ctx, client, r)
	if live == nil || err != nil {
		return err
	}
	if !slices.Equal(kube.AssignedAddresses(live), r.HaveAddresses) {
		return errors.New("apply status: others have written addresses meanwhile")
	}
	patch := patchOf(r, live, time.Now())
	_, err = client.ApplyStatus(ctx, r.Name, patch, metav1.ApplyOptions{FieldManager: r.Manager, Force: true})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("apply status: %w", err)
	}
	return nil
}

// find reads the object that the report is about; nil when it is not there. It
// asks for a list of one: listing is what the source may do anyway, and so no
// further permission is needed.
func find(ctx context.Context, client dynamic.ResourceInterface, r *kube.Report) (*unstructured.Unstructured, error) {
	list, err := client.List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", r.Name).String()})
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	for i := range list.Items {
		if o := &list.Items[i]; o.GetName() == r.Name && string(o.GetUID()) == r.UID {
			return o, nil
		}
	}
	return nil, nil
}

// patchOf returns the object to apply. Without conditions or addresses in it
// the API server takes away those that the field manager owns.
func patchOf(r *kube.Report, live *unstructured.Unstructured, now time.Time) *unstructured.Unstructured {
	there := conditionsOf(live)
	var list []any
	core := r.Resource.Group == ""
	if !core {
		for _, c := range there {
			if t, _ := c["type"].(string); !kube.Managed(t) {
				list = append(list, c)
			}
		}
	}
	for _, c := range r.Want {
		list = append(list, condition(c, there, now))
	}
	patch := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": r.Resource.GroupVersion().String(), "kind": r.Kind,
		"metadata": map[string]any{"name": r.Name, "namespace": r.Namespace, "uid": r.UID},
	}}
	if !core {
		patch.SetResourceVersion(live.GetResourceVersion())
	}
	status := map[string]any{}
	if len(list) > 0 {
		status["conditions"] = list
	}
	if len(r.Addresses)+len(r.HaveAddresses) > 0 {
		status["addresses"] = addresses(r.Addresses)
	}
	if len(status) > 0 {
		patch.Object["status"] = status
	}
	return patch
}

// addresses writes what was allocated to hosts. The list is one value, and
// always written: without it the API server would take away what was written
// before, and an empty one is how others' addresses go.
func addresses(of []kube.HostAddress) []any {
	out := make([]any, 0, len(of))
	for _, a := range of {
		out = append(out, map[string]any{"host": a.Host, "value": a.Addr.String()})
	}
	return out
}

// conditionsOf returns what of a status has the form of conditions.
func conditionsOf(u *unstructured.Unstructured) []map[string]any {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	var out []map[string]any
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

// condition writes one condition. The time of the last transition stays when
// the status does.
func condition(c kube.Condition, there []map[string]any, now time.Time) map[string]any {
	status := string(metav1.ConditionFalse)
	if c.Status {
		status = string(metav1.ConditionTrue)
	}
	since := now.UTC().Format(time.RFC3339)
	if i := slices.IndexFunc(there, func(m map[string]any) bool { return m["type"] == c.Type && m["status"] == status }); i >= 0 {
		if old, ok := there[i]["lastTransitionTime"].(string); ok {
			since = cmp.Or(old, since)
		}
	}
	out := map[string]any{
		"type": c.Type, "status": status, "reason": c.Reason, "message": c.Message, "lastTransitionTime": since,
	}
	if c.ObservedGeneration > 0 {
		out["observedGeneration"] = c.ObservedGeneration
	}
	return out
}
