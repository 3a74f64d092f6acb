package deploy_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/deploy"
)

// objects renders the chart and decodes what comes out.
func objects(t *testing.T, namespace string, values map[string]any) []*unstructured.Unstructured {
	t.Helper()
	c, err := deploy.Chart("v9.9.9")
	if err != nil {
		t.Fatal(err)
	}
	text, err := deploy.Render(c, namespace, values)
	if err != nil {
		t.Fatal(err)
	}
	var all []*unstructured.Unstructured
	for doc := range strings.SplitSeq(text, "\n---\n") {
		u := &unstructured.Unstructured{}
		// Strict: a key that is there twice is an error of the template.
		if err := yaml.UnmarshalStrict([]byte(doc), &u.Object); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if u.Object == nil {
			continue
		}
		all = append(all, u)
	}
	return all
}

// find decodes the object of that kind and name; fields that the type does not have are an error.
func find[T any](t *testing.T, all []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, u := range all {
		if u.GetKind() != kind || u.GetName() != name {
			continue
		}
		out := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, out, true); err != nil {
			t.Fatalf("%s %s: %v", kind, name, err)
		}
		return out
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

// everything turns on what is off by default.
func everything() map[string]any {
	return map[string]any{
		"network": "n1", "rootNamespace": "root", "forbidCarveOuts": true, "hostAddresses": []any{"192.0.2.1", "2001:db8::1"}, "enrolSelectors": "a=b;!c",
		"imagePullSecrets": []any{"pull"},
		"image":            map[string]any{"digest": "sha256:" + strings.Repeat("a", 64)},
		"agent": map[string]any{
			"loops": 2, "extraArgs": []any{"--pool-idle-timeout=1m"}, "podLabels": map[string]any{"x": "y"}, "podAnnotations": map[string]any{"x": "y"},
			"affinity": map[string]any{"nodeAffinity": map[string]any{}}, "seLinuxOptions": map[string]any{"type": "spc_t"},
		},
		"controller": map[string]any{
			"extraArgs": []any{"--lease-duration=30s"}, "tolerations": []any{map[string]any{"operator": "Exists"}},
			"affinity": map[string]any{"nodeAffinity": map[string]any{}}, "podLabels": map[string]any{"x": "y"}, "podAnnotations": map[string]any{"x": "y"},
		},
		"netpol":        map[string]any{"companions": true},
		"monitoring":    map[string]any{"enabled": true, "labels": map[string]any{"release": "p"}},
		"resourceQuota": map[string]any{"enabled": true},
		"openshift":     map[string]any{"enabled": true},
	}
}

// variants are all values that the invariants are checked with.
func variants(t *testing.T) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{"defaults": nil, "everything": everything(), "no-taint": {"taint": map[string]any{"remove": false}}, "spire": {"spire": map[string]any{"adminSocket": "/run/spire/private/admin.sock"}}}
	for _, name := range deploy.Profiles() {
		values, err := deploy.Profile(name)
		if err != nil {
			t.Fatal(err)
		}
		all["profile-"+name] = values
	}
	return all
}

func TestProfiles(t *testing.T) {
	want := []string{"aks", "eks", "gke", "k3s", "kind", "microk8s", "minikube", "openshift"}
	if got := deploy.Profiles(); !slices.Equal(got, want) {
		t.Errorf("profiles are %v", got)
	}
	if _, err := deploy.Profile("../values"); err == nil || !strings.Contains(err.Error(), "kind") {
		t.Errorf("got %v", err)
	}
}

func TestPodsInEveryVariant(t *testing.T) {
	for name, values := range variants(t) {
		t.Run(name, func(t *testing.T) {
			all := objects(t, "some-where", values)
			agent := find[appsv1.DaemonSet](t, all, "DaemonSet", "culvert-node")
			controller := find[appsv1.Deployment](t, all, "Deployment", "culvert-controller")
			for _, template := range []corev1.PodTemplateSpec{agent.Spec.Template, controller.Spec.Template} {
				checkTemplate(t, template)
			}
			checkAgent(t, agent)
			checkController(t, controller)
			for _, u := range all {
				if u.GetNamespace() != "" && u.GetNamespace() != "some-where" {
					t.Errorf("%s %s is in namespace %s", u.GetKind(), u.GetName(), u.GetNamespace())
				}
				if text, _ := yaml.Marshal(u.Object); strings.Contains(string(text), "culvert-system") {
					t.Errorf("%s %s names a namespace of its own:\n%s", u.GetKind(), u.GetName(), text)
				}
			}
		})
	}
}

// checkTemplate holds for every pod of ours.
func checkTemplate(t *testing.T, template corev1.PodTemplateSpec) {
	t.Helper()
	spec := template.Spec
	if template.Labels["istio.io/dataplane-mode"] != "none" {
		t.Errorf("pod may be enrolled: %v", template.Labels)
	}
	if spec.HostNetwork || spec.HostPID || spec.HostIPC {
		t.Error("pod shares a namespace with the host")
	}
	for _, c := range spec.Containers {
		image := c.Image
		if tagged := strings.HasSuffix(image, ":v9.9.9"); !tagged && !strings.Contains(image, "@sha256:") {
			t.Errorf("image %s has neither the program's version nor a digest", image)
		}
		sc := c.SecurityContext
		if sc.Privileged == nil || *sc.Privileged || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
			t.Errorf("container %s is privileged or may write to its image", c.Name)
		}
		if !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("container %s keeps capabilities", c.Name)
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("container %s has no bounds: %v", c.Name, c.Resources)
		}
		if c.ReadinessProbe == nil {
			t.Errorf("container %s has no readiness probe", c.Name)
		}
		checkMounts(t, c, spec.Volumes)
	}
}

// checkMounts wants each volume mounted once, and each mount to have its volume.
func checkMounts(t *testing.T, c corev1.Container, volumes []corev1.Volume) {
	t.Helper()
	mounted := map[string]bool{}
	for _, m := range c.VolumeMounts {
		mounted[m.Name] = true
		if !slices.ContainsFunc(volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("mount %s has no volume", m.Name)
		}
	}
	for _, v := range volumes {
		if !mounted[v.Name] {
			t.Errorf("volume %s is not used", v.Name)
		}
	}
}

func checkAgent(t *testing.T, d *appsv1.DaemonSet) {
	t.Helper()
	spec := d.Spec.Template.Spec
	c := spec.Containers[0]
	if want := []corev1.Capability{"NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"}; !slices.Equal(c.SecurityContext.Capabilities.Add, want) {
		t.Errorf("capabilities are %v, want %v", c.SecurityContext.Capabilities.Add, want)
	}
	// What may be written of the host.
	writable := []string{}
	for _, m := range c.VolumeMounts {
		if !m.ReadOnly {
			writable = append(writable, m.Name)
		}
	}
	if want := []string{"run", "cni-bin", "cni-net"}; !slices.Equal(writable, want) {
		t.Errorf("writable mounts are %v, want %v", writable, want)
	}
	if !slices.ContainsFunc(spec.Tolerations, func(x corev1.Toleration) bool {
		return x.Operator == corev1.TolerationOpExists && x.Key == "" && x.Effect == ""
	}) {
		t.Errorf("a taint keeps the agent away: %v", spec.Tolerations)
	}
	if spec.PriorityClassName != "system-node-critical" {
		t.Errorf("priority is %s", spec.PriorityClassName)
	}
	r := d.Spec.UpdateStrategy.RollingUpdate
	if r.MaxSurge.IntValue() != 1 || r.MaxUnavailable.IntValue() != 0 {
		t.Errorf("rolls with %v", r)
	}
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
		if p.HostPort != 0 {
			t.Errorf("port %s is one of the host", p.Name)
		}
	}
	if ports["metrics"] != 15020 || ports["ready"] != 15021 {
		t.Errorf("ports are %v", ports)
	}
}

func checkController(t *testing.T, d *appsv1.Deployment) {
	t.Helper()
	c := d.Spec.Template.Spec.Containers[0]
	if len(c.SecurityContext.Capabilities.Add) > 0 || *c.SecurityContext.AllowPrivilegeEscalation || !*d.Spec.Template.Spec.SecurityContext.RunAsNonRoot {
		t.Error("the controller may do more than it needs")
	}
	if len(d.Spec.Template.Spec.Volumes) > 0 {
		t.Errorf("the controller has volumes: %v", d.Spec.Template.Spec.Volumes)
	}
	if d.Spec.Template.Spec.Affinity == nil {
		t.Error("nothing spreads the replicas")
	}
}

func TestBudgetOnlyForSeveralReplicas(t *testing.T) {
	find[policyv1.PodDisruptionBudget](t, objects(t, "x", nil), "PodDisruptionBudget", "culvert-controller")
	for _, u := range objects(t, "x", map[string]any{"controller": map[string]any{"replicas": 1}}) {
		if u.GetKind() == "PodDisruptionBudget" {
			t.Error("one replica with a budget keeps its node from being emptied for ever")
		}
	}
}

// Everything that the chart allows, with the reason in words in the template beside it. What is not here is not allowed.
func TestRights(t *testing.T) {
	allowed := map[string][]string{
		"node": {
			"pods: get list watch", "namespaces: get list watch", "pods/status: patch", "events: create", "nodes: list watch",
			"apps/daemonsets[culvert-node]: get list watch",
		},
		"controller": {
			"pods: list watch", "services: list watch", "nodes: list watch", "namespaces: list watch",
			"discovery.k8s.io/endpointslices: list watch",
			"networking.istio.io/serviceentries: list watch", "networking.istio.io/workloadentries: list watch",
			"security.istio.io/authorizationpolicies: list watch", "security.istio.io/peerauthentications: list watch",
			"gateway.networking.k8s.io/gateways: list watch", "gateway.networking.k8s.io/gatewayclasses: list watch",
			"apiextensions.k8s.io/customresourcedefinitions: list watch",
			"networking.k8s.io/networkpolicies: list watch", "policy.networking.k8s.io/clusternetworkpolicies: list watch",
			"services/status: patch", "networking.istio.io/serviceentries/status: patch", "networking.istio.io/workloadentries/status: patch",
			"security.istio.io/authorizationpolicies/status: patch", "security.istio.io/peerauthentications/status: patch",
			"authentication.k8s.io/tokenreviews: create", "nodes: patch",
			"secrets: create", "secrets[culvert-ca]: get update", "secrets[cacerts]: get",
			"configmaps: create", "configmaps[culvert-ca-root]: get update", "configmaps[culvert-ca-crl]: get update",
			"coordination.k8s.io/leases: create", "coordination.k8s.io/leases[culvert-controller]: get update",
		},
	}
	all := objects(t, "x", nil)
	for who, want := range allowed {
		role := find[rbacv1.Role](t, all, "Role", "culvert-"+who)
		cluster := find[rbacv1.ClusterRole](t, all, "ClusterRole", "culvert-"+who)
		got := rights(slices.Concat(cluster.Rules, role.Rules))
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s may\n%s\nwant\n%s", who, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for _, r := range cluster.Rules {
			for _, resource := range r.Resources {
				if resource == "secrets" || resource == "configmaps" {
					t.Errorf("%s may use %s of all namespaces", who, resource)
				}
			}
		}
	}
	for _, u := range objects(t, "x", map[string]any{"taint": map[string]any{"remove": false}}) {
		if text, _ := yaml.Marshal(u.Object); u.GetName() == "culvert-controller" && u.GetKind() == "ClusterRole" && slices.Contains(rights(find[rbacv1.ClusterRole](t, []*unstructured.Unstructured{u}, "ClusterRole", "culvert-controller").Rules), "nodes: patch") {
			t.Errorf("nodes may be changed though taints are left alone:\n%s", text)
		}
	}
}

// Who may write NetworkPolicies may open and isolate any pod, so only what was chosen brings that right.
func TestRightsOfCompanions(t *testing.T) {
	const right = "networking.k8s.io/networkpolicies: create delete get list update watch"
	for _, on := range []bool{false, true} {
		all := objects(t, "x", map[string]any{"netpol": map[string]any{"companions": on}})
		got := rights(find[rbacv1.ClusterRole](t, all, "ClusterRole", "culvert-controller").Rules)
		if slices.Contains(got, right) != on {
			t.Errorf("with companions %v the controller may\n%s", on, strings.Join(got, "\n"))
		}
		writes := slices.ContainsFunc(got, func(r string) bool {
			return strings.Contains(r, "networkpolicies: ") && strings.Contains(r, "create")
		})
		args := find[appsv1.Deployment](t, all, "Deployment", "culvert-controller").Spec.Template.Spec.Containers[0].Args
		if writes != on || slices.Contains(args, "--netpol-companions=true") != on {
			t.Errorf("with companions %v: writes %v, args %v", on, writes, args)
		}
	}
}

// rights lists rules as "group/resource[name]: verbs".
func rights(rules []rbacv1.PolicyRule) []string {
	var out []string
	for _, r := range rules {
		names := r.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, name := range names {
					text := resource
					if group != "" {
						text = group + "/" + text
					}
					if name != "" {
						text += "[" + name + "]"
					}
					out = append(out, text+": "+strings.Join(slices.Sorted(slices.Values(r.Verbs)), " "))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// Each rule, capability and host path is explained by a comment before it.
func TestRightsAreExplained(t *testing.T) {
	c, err := deploy.Chart("")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range c.Templates {
		lines := strings.Split(string(f.Data), "\n")
		for n, line := range lines {
			trimmed := strings.TrimSpace(line)
			if !strings.HasPrefix(trimmed, "- apiGroups:") || n == 0 {
				continue
			}
			if before := strings.TrimSpace(lines[n-1]); !strings.HasPrefix(before, "#") && !sameReason(lines, n) {
				t.Errorf("%s:%d: rule without a reason", f.Name, n+1)
			}
		}
	}
}

// sameReason allows a rule to share the comment of the one before it when that has only the same verbs or object.
func sameReason(lines []string, n int) bool {
	for n--; n > 0; n-- {
		trimmed := strings.TrimSpace(lines[n])
		if strings.HasPrefix(trimmed, "#") {
			return true
		}
		if trimmed == "rules:" || trimmed == "" {
			return false
		}
	}
	return false
}

func TestSchema(t *testing.T) {
	tests := []struct {
		name   string
		values map[string]any
		want   string // "" means accepted
	}{
		{"typo", map[string]any{"trustDomian": "x"}, "read values: trustDomian: there is no such value"},
		{"nested-typo", map[string]any{"agent": map[string]any{"dnss": true}}, "read values: agent.dnss: there is no such value"},
		{"number", map[string]any{"image": map[string]any{"tag": 5726654}}, "image.tag: got number, want string (quote it, or use --set-string)"},
		{"several", map[string]any{"agent": map[string]any{"a": 1, "b": 2, "dns": "yes"}}, "agent.dns: got string, want boolean"},
		{"several-names", map[string]any{"agent": map[string]any{"a": 1, "b": 2}}, "agent.a: there is no such value; agent.b: there is no such value"},
		{"deep-typo", map[string]any{"agent": map[string]any{"resources": map[string]any{"request": map[string]any{}}}}, "request"},
		{"type", map[string]any{"agent": map[string]any{"dns": "yes"}}, "read values: agent.dns: got string, want boolean"},
		{"range", map[string]any{"controller": map[string]any{"replicas": 0}}, "replicas"},
		{"latest", map[string]any{"image": map[string]any{"tag": "latest"}}, "tag"},
		{"digest", map[string]any{"image": map[string]any{"digest": "sha256:12"}}, "digest"},
		{"choice", map[string]any{"agent": map[string]any{"sameNode": "fast"}}, "sameNode"},
		{"network-policies", map[string]any{"netpol": map[string]any{"enforce": "maybe"}}, "enforce"},
		{"path", map[string]any{"cni": map[string]any{"binDir": "opt/cni"}}, "binDir"},
		{"injected-line", map[string]any{"trustDomain": "x\nevil: y"}, "trustDomain"},
		{"injected-flag", map[string]any{"agent": map[string]any{"extraArgs": []any{"--a=1\n- --b"}}}, "extraArgs"},
		{"not-a-flag", map[string]any{"controller": map[string]any{"extraArgs": []any{"version"}}}, "extraArgs"},
		{"namespace", map[string]any{"excludeNamespaces": []any{"Kube"}}, "excludeNamespaces"},
		{"duration", map[string]any{"ca": map[string]any{"ttl": "1 day"}}, "ttl"},
		{"good", everything(), ""},
		{"short-without-policies", map[string]any{"agent": map[string]any{"sameNode": "short"}, "netpol": map[string]any{"enforce": false}},
			"read values: agent.sameNode: short passes by the CNI's NetworkPolicies: it needs netpol.enforce=true, or none"},
		{"short-none", map[string]any{"agent": map[string]any{"sameNode": "short"}, "netpol": map[string]any{"enforce": "none"}}, ""},
		{"short", map[string]any{"agent": map[string]any{"sameNode": "short"}}, ""},
		{"log-level", map[string]any{"logLevel": "nonsense"}, `read values: logLevel: "nonsense": want error, warn, info, debug, trace or off, or scope=level`},
		{"log-scope", map[string]any{"logLevel": "info,proxy=loud"}, `logLevel: "proxy=loud": want`},
		{"log-scope-without-level", map[string]any{"logLevel": "a=b:info"}, `logLevel: "a=b:info": want`},
		{"log-levels", map[string]any{"logLevel": "proxy=debug,dns:trace,xds=OFF,warn"}, ""},
		{"ttl", map[string]any{"ca": map[string]any{"ttl": "48h", "maxTTL": "24h"}}, "read values: ca.ttl: 48h is more than ca.maxTTL, 24h"},
		{"ttl-in-parts", map[string]any{"ca": map[string]any{"ttl": "1h30m", "maxTTL": "90m"}}, ""},
		{"ttl-short", map[string]any{"ca": map[string]any{"ttl": "1s"}}, "ca.ttl: 1s is less than a minute"},
		{"root-ttl", map[string]any{"ca": map[string]any{"rootTTL": "8639h"}}, "ca.rootTTL: 8639h is less than four times ca.maxTTL, 2160h"},
		{"root-ttl-settled", map[string]any{"ca": map[string]any{"rootTTL": "8639h"}, "controller": map[string]any{"extraArgs": []any{"--ca-rotation-settle=1h"}}}, ""},
		{"leave-timeout", map[string]any{"agent": map[string]any{"leaveTimeout": "721h"}}, "agent.leaveTimeout: 721h is more than 720h"},
		{"all-stay", map[string]any{"controller": map[string]any{"replicas": 3, "minAvailable": 3}}, "read values: controller.minAvailable: 3 of 3 replicas keep every node with one of them from being emptied"},
		{"all-stay-by-share", map[string]any{"controller": map[string]any{"replicas": 3, "minAvailable": "67%"}}, "controller.minAvailable: 67% of 3 replicas keep"},
		{"some-stay-by-share", map[string]any{"controller": map[string]any{"replicas": 3, "minAvailable": "66%"}}, ""},
		{"one-replica", map[string]any{"controller": map[string]any{"replicas": 1}}, ""},
		{"several-faults", map[string]any{"logLevel": "loud", "ca": map[string]any{"ttl": "48h", "maxTTL": "24h"}}, "scope=level; ca.ttl: 48h"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := deploy.Chart("")
			if err != nil {
				t.Fatal(err)
			}
			_, err = deploy.Render(c, "x", tt.values)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Each value in values.yaml is in the schema, and the other way round.
func TestSchemaKnowsTheValues(t *testing.T) {
	c, err := deploy.Chart("")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := yaml.Unmarshal(c.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	// Maps whose keys are the user's.
	free := []string{"agent.resources", "agent.nodeSelector", "agent.seLinuxOptions", "controller.resources", "controller.nodeSelector", "global"}
	var walk func(path string, schema, values map[string]any)
	walk = func(path string, schema, values map[string]any) {
		properties, _ := schema["properties"].(map[string]any)
		for key, sub := range properties {
			name := strings.TrimPrefix(path+"."+key, ".")
			if slices.Contains(free, name) {
				continue
			}
			value, there := values[key]
			if !there {
				t.Errorf("%s is in the schema and not in values.yaml", name)
			}
			nested, isMap := value.(map[string]any)
			subSchema, _ := sub.(map[string]any)
			if isMap && subSchema["properties"] != nil {
				walk(name, subSchema, nested)
			}
		}
	}
	walk("", schema, c.Values)
}

// Each value is explained in values.yaml.
func TestValuesAreExplained(t *testing.T) {
	c, err := deploy.Chart("")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range c.Raw {
		if f.Name != "values.yaml" {
			continue
		}
		previous := "" // the line before is a comment, or explains this one with it
		for n, line := range strings.Split(string(f.Data), "\n") {
			trimmed := strings.TrimSpace(line)
			key, _, isKey := strings.Cut(trimmed, ":")
			if isKey && !strings.HasPrefix(trimmed, "#") && !strings.HasPrefix(trimmed, "-") && !strings.HasPrefix(line, "      ") && previous == "" {
				t.Errorf("values.yaml:%d: %s is not explained", n+1, key)
			}
			previous = trimmed
		}
	}
}

func TestVersionIsTheProgramsOwn(t *testing.T) {
	for _, programs := range []string{"", "unknown"} {
		c, err := deploy.Chart(programs)
		if err != nil || c.AppVersion() != deploy.Version {
			t.Errorf("%q gives %v, %v", programs, c.AppVersion(), err)
		}
	}
}

func TestCRDs(t *testing.T) {
	crds, err := deploy.CRDs()
	if errors.Is(err, deploy.ErrNoCRDs) {
		t.Skip("built without definitions: make generate")
	}
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, crd := range crds {
		names = append(names, crd.GetName())
		if crd.GetKind() != "CustomResourceDefinition" || crd.GetAPIVersion() != "apiextensions.k8s.io/v1" {
			t.Errorf("%s is a %s", crd.GetName(), crd.GetKind())
		}
		if crd.GetAnnotations()[deploy.BundleAnnotation] == "" || len(crd.GetLabels()) > 0 || crd.Object["status"] != nil {
			t.Errorf("%s has annotations %v, labels %v, status %v", crd.GetName(), crd.GetAnnotations(), crd.GetLabels(), crd.Object["status"])
		}
	}
	for _, want := range []string{
		"authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io", "serviceentries.networking.istio.io",
		"workloadentries.networking.istio.io", "virtualservices.networking.istio.io", "httproutes.gateway.networking.k8s.io",
		"gateways.gateway.networking.k8s.io", "clusternetworkpolicies.policy.networking.k8s.io",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing", want)
		}
	}
	var b strings.Builder
	if err := deploy.WriteCRDs(&b); err != nil || strings.Count(b.String(), "\nkind: CustomResourceDefinition\n") != len(crds) {
		t.Errorf("written: %v", err)
	}
}

func TestFlagsStayWhole(t *testing.T) {
	const odd = "--a=1 #: {{ x }} \" - --b"
	all := objects(t, "x", map[string]any{"agent": map[string]any{"extraArgs": []any{odd}}})
	agent := find[appsv1.DaemonSet](t, all, "DaemonSet", "culvert-node")
	args := agent.Spec.Template.Spec.Containers[0].Args
	if got := args[len(args)-1]; got != odd {
		t.Errorf("argument is %q", got)
	}
	for _, arg := range args {
		if !strings.HasPrefix(arg, "--") {
			t.Errorf("%q is no flag", arg)
		}
	}
}
