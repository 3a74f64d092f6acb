package cluster

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

const (
	modeLabel  = "istio.io/dataplane-mode"
	redirected = "ambient.istio.io/redirection"
)

// space is a namespace of a test.
type space struct {
	t    *testing.T
	name string
}

// namespace makes a namespace that goes with the test. Labels are key=value.
func namespace(t *testing.T, labels ...string) *space {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-" + strings.ToLower(strings.TrimPrefix(strings.ReplaceAll(t.Name(), "/", "-"), "Test")) + "-", Labels: pairs(labels)}}
	ns, err := shared.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := &space{t: t, name: ns.Name}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if t.Failed() {
			t.Log(s.evidence(ctx))
			if shared.keep {
				return
			}
		}
		now := int64(0)
		_ = shared.client.CoreV1().Pods(s.name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		err := shared.client.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // a test has removed it itself
			t.Errorf("remove namespace: %v", err)
		}
	})
	wait(t, "namespace "+ns.Name+" has its default account", func() error {
		_, err := shared.client.CoreV1().ServiceAccounts(ns.Name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return s
}

func pairs(list []string) map[string]string {
	m := make(map[string]string)
	for _, item := range list {
		k, v, _ := strings.Cut(item, "=")
		m[k] = v
	}
	return m
}

// enrol labels the namespace into the mesh.
func (s *space) enrol() { s.label(modeLabel, "ambient") }

// leave takes the label away.
func (s *space) leave() { s.label(modeLabel, "") }

// label sets a label of the namespace; an empty value removes it.
func (s *space) label(key, value string) {
	s.t.Helper()
	text := `"` + value + `"`
	if value == "" {
		text = "null"
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, key, text)
	if _, err := shared.client.CoreV1().Namespaces().Patch(s.t.Context(), s.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// app is a pod of the test program. Its service account has its name.
type app struct {
	*space
	name string
	node string
	ip   string
	uid  string
}

// shape changes the pod before it is made.
type shape func(*corev1.Pod)

func onNode(node string) shape { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

func withAnnotation(key, value string) shape {
	return func(p *corev1.Pod) { p.Annotations[key] = value }
}

func withLabel(key, value string) shape { return func(p *corev1.Pod) { p.Labels[key] = value } }

func withArgs(args ...string) shape {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Args = args }
}

func onHostNetwork(p *corev1.Pod) {
	p.Spec.HostNetwork = true
	p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
}

// pod makes a pod without waiting for it.
func (s *space) pod(name string, shapes ...shape) *app {
	s.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := shared.client.CoreV1().ServiceAccounts(s.name).Create(s.t.Context(), account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		s.t.Fatal(err)
	}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			ServiceAccountName: name, TerminationGracePeriodSeconds: ptr.To(int64(2)), AutomountServiceAccountToken: ptr.To(false),
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "app", Image: testImage, ImagePullPolicy: corev1.PullNever, Args: []string{"serve"},
				Env: []corev1.EnvVar{
					{Name: "POD_NAME", ValueFrom: field("metadata.name")}, {Name: "POD_NAMESPACE", ValueFrom: field("metadata.namespace")},
					{Name: "NODE_NAME", ValueFrom: field("spec.nodeName")},
				},
			}},
		},
	}
	for _, change := range shapes {
		change(p)
	}
	if _, err := shared.client.CoreV1().Pods(s.name).Create(s.t.Context(), p, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	return &app{space: s, name: name}
}

// run makes a pod and waits until it is ready.
func (s *space) run(name string, shapes ...shape) *app {
	s.t.Helper()
	return s.pod(name, shapes...).ready()
}

// ready waits until the pod is ready and learns where it is.
func (a *app) ready() *app {
	a.t.Helper()
	wait(a.t, "pod "+a.name+" is ready", func() error {
		p, err := a.get()
		if err != nil {
			return err
		}
		if !ready(p) {
			return fmt.Errorf("it is %s: %s", p.Status.Phase, a.events())
		}
		a.node, a.ip, a.uid = p.Spec.NodeName, p.Status.PodIP, string(p.UID)
		return nil
	})
	return a
}

func (a *app) get() (*corev1.Pod, error) {
	return shared.client.CoreV1().Pods(a.space.name).Get(a.t.Context(), a.name, metav1.GetOptions{})
}

func (a *app) events() string {
	list, err := shared.client.CoreV1().Events(a.space.name).List(a.t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + a.name})
	if err != nil {
		return err.Error()
	}
	var texts []string
	for _, e := range list.Items {
		texts = append(texts, e.Reason+": "+e.Message)
	}
	return strings.Join(texts[max(0, len(texts)-3):], "; ")
}

// identity is the pod's SPIFFE ID.
func (a *app) identity() string {
	return "spiffe://cluster.local/ns/" + a.space.name + "/sa/" + a.name
}

// enrolled waits until the agent says that the pod is in the mesh.
func (a *app) enrolled() *app {
	a.t.Helper()
	a.wantRedirection("enabled")
	return a
}

// released waits until the agent says that the pod is not in the mesh.
func (a *app) released() *app {
	a.t.Helper()
	a.wantRedirection("")
	return a
}

func (a *app) wantRedirection(want string) {
	a.t.Helper()
	wait(a.t, fmt.Sprintf("pod %s has redirection %q", a.name, want), func() error {
		p, err := a.get()
		if err != nil {
			return err
		}
		if got := p.Annotations[redirected]; got != want {
			return fmt.Errorf("it is %q: %s", got, a.events())
		}
		return nil
	})
}

// service makes a service in front of the pods with label app=name.
func (s *space) service(name string, change func(*corev1.Service)) *corev1.Service {
	s.t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: portNumber(8080)}, {Name: "tcp", Port: 9000, TargetPort: portNumber(9000)}},
		},
	}
	if change != nil {
		change(svc)
	}
	svc, err := shared.client.CoreV1().Services(s.name).Create(s.t.Context(), svc, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return svc
}

// apply applies manifests in the namespace.
func (s *space) apply(manifests string) {
	s.t.Helper()
	if out, err := kubectl(s.t.Context(), strings.NewReader(manifests), "apply", "--server-side", "-n", s.name, "-f", "-"); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
}

// restarts is how often the pod's containers were started again.
func (a *app) restarts() int32 {
	a.t.Helper()
	p, err := a.get()
	if err != nil {
		a.t.Fatal(err)
	}
	sum := int32(0)
	for _, c := range p.Status.ContainerStatuses {
		sum += c.RestartCount
	}
	return sum
}

// evidence is what an engineer needs when a test has failed.
func (s *space) evidence(ctx context.Context) string {
	var b strings.Builder
	pods, err := shared.client.CoreV1().Pods(s.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for _, p := range pods.Items {
		fmt.Fprintf(&b, "pod %s on %s, %v, %s, ready %v, labels %v, annotations %v\n", p.Name, p.Spec.NodeName, p.Status.PodIPs, p.Status.Phase, ready(&p), maps.Clone(p.Labels), p.Annotations)
		if shared.nodes != nil && p.Spec.NodeName != "" && !p.Spec.HostNetwork {
			fmt.Fprintf(&b, "%s\n", ruleset(ctx, p.Spec.NodeName, string(p.UID)))
		}
	}
	b.WriteString(events(ctx, shared, s.name))
	if shared.mesh.here {
		b.WriteString(shared.mesh.report(ctx))
	}
	return b.String()
}

// since is now, a little earlier: logs are asked for by whole seconds.
func since() time.Time { return time.Now().Add(-time.Second) }

// annotate sets an annotation of the running pod; an empty value removes it.
func (a *app) annotate(key, value string) {
	a.t.Helper()
	text := `"` + value + `"`
	if value == "" {
		text = "null"
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, key, text)
	if _, err := shared.client.CoreV1().Pods(a.space.name).Patch(a.t.Context(), a.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		a.t.Fatal(err)
	}
}
