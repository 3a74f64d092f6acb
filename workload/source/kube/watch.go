package kube

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// kindDefinition is the kind of the definitions of custom resources. They are
// watched like the others but are not part of the state.
const kindDefinition = kindCount

// message is what a watch tells the goroutine of Run.
type message struct {
	from    *watcher
	replace bool // objects are all that there are
	objects []object
	gone    bool
}

// watcher is one running watch of a kind. It is the store of a client-go
// reflector: the reflector lists, watches, resumes and lists again, and what
// it finds goes, trimmed, to one channel in the order of arrival.
type watcher struct {
	kind   kind
	trim   func(any) (object, error)
	out    chan<- message
	done   <-chan struct{} // nobody listens any more
	cancel context.CancelFunc
	synced bool // belongs to Run
}

var _ cache.TransformingStore = (*watcher)(nil)

// Add takes an object that is new.
func (w *watcher) Add(o any) error { return w.send(o, false) }

// Update takes an object that changed.
func (w *watcher) Update(o any) error { return w.send(o, false) }

// Delete takes the last state of an object that is gone.
func (w *watcher) Delete(o any) error { return w.send(o, true) }

// Resync does nothing: nothing is forgotten.
func (w *watcher) Resync() error { return nil }

// Transformer lets the reflector trim objects as they arrive.
func (w *watcher) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return w.trimmed(o) }
}

// Replace takes all objects that there are.
func (w *watcher) Replace(list []any, _ string) error {
	m := message{from: w, replace: true, objects: make([]object, 0, len(list))}
	for i, o := range list {
		t, err := w.trimmed(o)
		if err != nil {
			return err
		}
		list[i] = nil // the whole object is garbage from here on
		m.objects = append(m.objects, t)
	}
	w.post(m)
	return nil
}

func (w *watcher) send(o any, gone bool) error {
	t, err := w.trimmed(o)
	if err != nil {
		return err
	}
	w.post(message{from: w, objects: []object{t}, gone: gone})
	return nil
}

func (w *watcher) post(m message) {
	select {
	case w.out <- m:
	case <-w.done:
	}
}

func (w *watcher) trimmed(o any) (object, error) {
	if t, ok := o.(object); ok {
		return t, nil
	}
	return w.trim(o)
}

// trimAs makes a trimmer of a function for one type.
func trimAs[F any, T object](trim func(F) T) func(any) (object, error) {
	return func(o any) (object, error) {
		f, ok := o.(F)
		if !ok {
			return nil, fmt.Errorf("trim object: it is a %T", o)
		}
		return trim(f), nil
	}
}

// lister lists and watches one resource.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// listWatch adapts a typed client; tweak narrows what is asked for.
func listWatch[L runtime.Object](c lister[L], client any, tweak func(*metav1.ListOptions)) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			tweak(&o)
			return c.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			tweak(&o)
			return c.Watch(ctx, o)
		},
	}, client)
}

// spec says how a kind is watched.
type spec struct {
	kind     kind
	lw       cache.ListerWatcher
	expected runtime.Object
	trim     func(any) (object, error)
}

// coreSpecs are the watches that always run.
func (s *Source) coreSpecs() []spec {
	core := s.clients.Core
	all := func(*metav1.ListOptions) {}
	living := func(o *metav1.ListOptions) { o.FieldSelector = "status.phase!=Succeeded,status.phase!=Failed" }
	// Slices that Kubernetes derives from selectors say what the pods' labels
	// say; only the others are needed.
	manual := func(o *metav1.ListOptions) {
		o.LabelSelector = discoveryv1.LabelManagedBy + "!=endpointslice-controller.k8s.io"
	}
	definitions := s.clients.Metadata.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	specs := []spec{
		{kindNamespace, listWatch(core.CoreV1().Namespaces(), core, all), &corev1.Namespace{}, trimAs(trimNamespace)},
		{kindNode, listWatch(core.CoreV1().Nodes(), core, all), &corev1.Node{}, trimAs(trimNode)},
		{kindPod, listWatch(core.CoreV1().Pods(""), core, living), &corev1.Pod{}, trimAs(trimPod)},
		{kindService, listWatch(core.CoreV1().Services(""), core, all), &corev1.Service{}, trimAs(trimService)},
		{kindEndpointSlice, listWatch(core.DiscoveryV1().EndpointSlices(""), core, manual), &discoveryv1.EndpointSlice{}, trimAs(trimSlice)},
		{kindDefinition, listWatch(definitions, s.clients.Metadata, all), &metav1.PartialObjectMetadata{}, trimAs(trimDefinition)},
	}
	if s.cfg.NetworkPolicies != nil {
		specs = append(specs, spec{
			kindNetworkPolicy, listWatch(core.NetworkingV1().NetworkPolicies(""), core, all), &networkingv1.NetworkPolicy{},
			trimAs(translateNetworkPolicy),
		})
	}
	return specs
}

// customSpec is the watch of a custom resource.
func (s *Source) customSpec(c customResource) spec {
	lw := listWatch(s.clients.Dynamic.Resource(c.resource), s.clients.Dynamic, func(*metav1.ListOptions) {})
	out := spec{kind: c.kind, lw: lw, expected: &unstructured.Unstructured{}}
	out.trim = s.state.trimCustom(c.kind)
	return out
}

// trimCustom returns the trimmer of a custom resource. It reads only what never
// changes of the state.
func (st *state) trimCustom(k kind) func(any) (object, error) {
	switch k {
	case kindServiceEntry:
		return trimAs(trimServiceEntry)
	case kindWorkloadEntry:
		return trimAs(trimWorkloadEntry)
	case kindPeerAuthentication:
		return trimAs(trimPeerAuthentication)
	case kindGateway:
		return trimAs(trimGateway)
	case kindGatewayClass:
		return trimAs(trimGatewayClass)
	case kindClusterNetworkPolicy:
		return trimAs(translateClusterNetworkPolicy)
	default:
		settings := st.settings
		return trimAs(func(u *unstructured.Unstructured) *authorizationObject { return translateAuthorization(u, &settings) })
	}
}

// definitionObject is the definition of a custom resource: its name.
type definitionObject struct{ header }

func trimDefinition(m *metav1.PartialObjectMetadata) *definitionObject {
	return &definitionObject{header{key: key{name: m.Name}}}
}

// start runs a watch until ctx ends or the watcher is cancelled.
func (r *runner) start(ctx context.Context, sp spec) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{kind: sp.kind, trim: sp.trim, out: r.messages, done: ctx.Done(), cancel: cancel}
	name := "CustomResourceDefinition"
	if sp.kind < kindCount {
		name = sp.kind.String()
	}
	logger := logr.FromSlogHandler(r.source.cfg.Logger.Handler())
	reflector := cache.NewReflectorWithOptions(sp.lw, sp.expected, w, cache.ReflectorOptions{
		Name: "kube", TypeDescription: name, Logger: &logger,
	})
	r.running.Go(func() { reflector.RunWithContext(klog.NewContext(ctx, logger)) })
	return w
}
