package authz

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Ref names pods: one, those of a Deployment or the like, those of a Service, or those with certain labels.
type Ref struct {
	namespace, kind, name string
	labels                map[string]string
}

// ParseRef reads "kind/name" or "key=value,…", with "namespace/" in front if it is not the given one. Kinds may be
// written as kubectl knows them.
func ParseRef(text, namespace string) (Ref, error) {
	r := Ref{namespace: namespace}
	if strings.Contains(text, "=") {
		// Keys may have a slash, so a namespace in front is told by its lack of a dot: prefixes of keys are domains.
		if ns, rest, ok := strings.Cut(text, "/"); ok && !strings.ContainsAny(ns, ".=,") {
			r.namespace, text = ns, rest
		}
		r.labels = make(map[string]string)
		for part := range strings.SplitSeq(text, ",") {
			k, v, ok := strings.Cut(part, "=")
			if !ok || k == "" || strings.HasSuffix(k, "!") {
				return Ref{}, fmt.Errorf("%q is no label: want key=value", part)
			}
			r.labels[k] = strings.TrimPrefix(v, "=")
		}
		return r, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) == 3 {
		r.namespace, parts = parts[0], parts[1:]
	}
	if len(parts) != 2 || slices.Contains(parts, "") || r.namespace == "" {
		return Ref{}, fmt.Errorf("%q names no workload: want [namespace/]kind/name, such as pod/web-0, deployment/web or service/web, or label=value", text)
	}
	kind, ok := kinds()[strings.ToLower(parts[0])]
	if !ok {
		return Ref{}, fmt.Errorf("%q: kind %s has no pods: want one of %s", text, parts[0], strings.Join(slices.Sorted(maps.Keys(kinds())), ", "))
	}
	r.kind, r.name = kind, parts[1]
	return r, nil
}

func kinds() map[string]string {
	return map[string]string{
		"pod": "Pod", "pods": "Pod", "po": "Pod", "deployment": "Deployment", "deployments": "Deployment", "deploy": "Deployment",
		"statefulset": "StatefulSet", "sts": "StatefulSet", "daemonset": "DaemonSet", "ds": "DaemonSet", "replicaset": "ReplicaSet", "rs": "ReplicaSet",
		"job": "Job", "cronjob": "CronJob", "cj": "CronJob", "service": "Service", "svc": "Service",
	}
}

// String is the form that ParseRef reads.
func (r Ref) String() string {
	if r.labels == nil {
		return r.namespace + "/" + strings.ToLower(r.kind) + "/" + r.name
	}
	return r.namespace + "/" + labelsText(r.labels)
}

func labelsText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

func contains(labels, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// find returns the pods that r names; the error says that there are none and what r may have meant.
func (w *World) find(r Ref) ([]*pod, error) {
	var out []*pod
	var names []string
	inService := w.membersOf(r)
	for _, p := range w.pods {
		if p.namespace != r.namespace {
			continue
		}
		switch {
		case r.labels != nil && contains(p.labels, r.labels),
			r.kind == "Pod" && p.name == r.name && (!p.template || p.owner.kind == "Pod"),
			r.kind == p.owner.kind && p.owner.name == r.name && r.kind != "Pod",
			inService[p.key()]:
			out = append(out, p)
		case r.kind == "Pod" && !p.template:
			names = append(names, p.name)
		case r.kind == p.owner.kind:
			names = append(names, p.owner.name)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if r.kind == "Service" {
		names = w.servicesIn(r.namespace)
	}
	text := "no pods of " + r.String() + " in what was read"
	switch {
	case w.namespaces[r.namespace] == nil:
		text = "namespace " + r.namespace + " is not known" + cmp.Or(hint(r.namespace, w.Namespaces()), ": give another with -n, or as NAMESPACE/KIND/NAME")
	case r.labels == nil:
		text += hint(r.name, names)
	}
	return nil, errors.New(text)
}

func (w *World) servicesIn(namespace string) []string {
	var out []string
	for svc := range w.store.Services() {
		if svc.Namespace == namespace {
			out = append(out, svc.Name)
		}
	}
	return out
}

// membersOf returns the pods behind a Service.
func (w *World) membersOf(r Ref) map[string]bool {
	if r.kind != "Service" {
		return nil
	}
	out := make(map[string]bool)
	for svc := range w.store.Services() {
		if svc.Namespace != r.namespace || svc.Name != r.name {
			continue
		}
		for _, e := range w.store.Endpoints(svc.Key()) {
			out[e.Workload.Namespace+"/"+e.Workload.Name] = true
		}
	}
	return out
}
