// Package companion keeps one NetworkPolicy beside each of the users' that would cut HBONE: the same pods and directions,
// and for the same peers TCP 15008 (netpolcheck.CompanionSpec has what it says). So the policies that users wrote stay as
// they wrote them.
//
// A companion belongs to its policy: it has it as owner, follows its changes, and goes when it goes or needs none any more.
// It is known by two labels and by its name together, so nothing is changed or deleted that was not made here.
// Electing who writes, and rights, are left to the caller. A Writer's methods may be called concurrently; Run once.
package companion

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

const (
	// maxNames is how many names are tried when others have them already.
	maxNames       = 5
	requestTimeout = 10 * time.Second
	fieldManager   = "culvert-controller"
	byPolicy       = "policy"
)

// Config of a Writer.
type Config struct {
	// Client is required; it needs list, watch, create, update and delete of networkpolicies.
	Client kubernetes.Interface
	// Mesh says which namespaces are never in the mesh, and whether DNS is captured.
	Mesh netpolcheck.Mesh
	// Logger is told of changes and failures; nil discards.
	Logger *slog.Logger
}

// Writer keeps the companions of a cluster.
type Writer struct {
	client kubernetes.Interface
	mesh   netpolcheck.Mesh
	log    *slog.Logger

	policies cache.SharedIndexInformer
	queue    workqueue.TypedRateLimitingInterface[string] // of keys

	written, failed atomic.Uint64
}

// New makes a Writer; nothing is asked of the API server before Run.
func New(cfg Config) (*Writer, error) {
	if cfg.Client == nil {
		return nil, errors.New("companion: Config.Client is required")
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Writer{client: cfg.Client, mesh: cfg.Mesh, log: log}, nil
}

// Written is how many companions were created, changed or deleted so far.
func (w *Writer) Written() uint64 { return w.written.Load() }

// Failed is how often that failed; each was or will be tried again.
func (w *Writer) Failed() uint64 { return w.failed.Load() }

// key stands for a user's policy, whether it is there or not, and for its companions.
func key(namespace, uid string) string { return namespace + "/" + uid }

func keyOf(p *networkingv1.NetworkPolicy) string {
	if netpolcheck.IsCompanion(p) {
		return key(p.Namespace, p.Labels[netpolcheck.LabelCompanionOf])
	}
	return key(p.Namespace, string(p.UID))
}

// Run works until ctx ends, and returns after everything that it started has.
func (w *Writer) Run(ctx context.Context) error {
	w.queue = workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	factory := informers.NewSharedInformerFactoryWithOptions(w.client, 0, informers.WithTransform(trim))
	w.policies = factory.Networking().V1().NetworkPolicies().Informer()
	if err := w.watch(); err != nil {
		return fmt.Errorf("watch network policies: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		w.queue.ShutDown()
		factory.Shutdown()
	}()
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), w.policies.HasSynced) {
		return nil // stopping
	}
	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	for w.work(ctx) {
	}
	return nil
}

func (w *Writer) watch() error {
	err := w.policies.AddIndexers(cache.Indexers{byPolicy: func(o any) ([]string, error) {
		if p, ok := o.(*networkingv1.NetworkPolicy); ok {
			return []string{keyOf(p)}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return err
	}
	changed := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if p, ok := o.(*networkingv1.NetworkPolicy); ok {
			w.queue.Add(keyOf(p))
		}
	}
	_, err = w.policies.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed,
		UpdateFunc: func(before, now any) { // the labels may have said something else before
			changed(before)
			changed(now)
		},
	})
	return err
}

// trim leaves out what only takes memory.
func trim(o any) (any, error) {
	if p, ok := o.(*networkingv1.NetworkPolicy); ok {
		p.ManagedFields = nil
	}
	return o, nil
}

// work takes one policy. It reports false when there will be no more.
func (w *Writer) work(ctx context.Context) bool {
	k, shutdown := w.queue.Get()
	if shutdown {
		return false
	}
	defer w.queue.Done(k)
	err := w.keep(ctx, k)
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		w.queue.Forget(k)
	case ctx.Err() != nil:
	default:
		if !apierrors.IsConflict(err) { // somebody was faster: no fault
			w.failed.Add(1)
			namespace, _, _ := strings.Cut(k, "/")
			w.log.Warn("a companion cannot be written, trying again: until then a CNI may cut its policy's pods off from the mesh",
				"namespace", namespace, "attempt", w.queue.NumRequeues(k)+1, "error", err)
		}
		w.queue.AddRateLimited(k)
	}
	return true
}

// keep makes the companion of one policy what it should be.
func (w *Writer) keep(ctx context.Context, k string) error {
	objects, err := w.policies.GetIndexer().ByIndex(byPolicy, k)
	if err != nil {
		return err
	}
	var of *networkingv1.NetworkPolicy
	var made []*networkingv1.NetworkPolicy
	for _, o := range objects {
		switch p, ok := o.(*networkingv1.NetworkPolicy); {
		case !ok:
		case !netpolcheck.IsCompanion(p):
			of = p
		case ours(p):
			made = append(made, p)
		}
	}
	var spec *networkingv1.NetworkPolicySpec
	if of != nil {
		if of.DeletionTimestamp != nil {
			return nil // it holds until it is gone, and the garbage collector may want its companion gone before
		}
		spec = netpolcheck.CompanionSpec(of, w.mesh)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if spec != nil {
		if len(made) == 0 {
			return w.create(ctx, of, spec)
		}
		if err := w.update(ctx, made[0], of, spec); err != nil {
			return err
		}
		made = made[1:]
	}
	for _, c := range made {
		if err := w.remove(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// ours reports whether a companion has a name that it would have got here.
func ours(c *networkingv1.NetworkPolicy) bool {
	for attempt := range maxNames {
		if netpolcheck.IsCompanionName(c.Name, c.Labels[netpolcheck.LabelCompanionOf], attempt) {
			return true
		}
	}
	return false
}

// create makes the companion, under the first name that nobody else has.
func (w *Writer) create(ctx context.Context, of *networkingv1.NetworkPolicy, spec *networkingv1.NetworkPolicySpec) error {
	api := w.client.NetworkingV1().NetworkPolicies(of.Namespace)
	for attempt := range maxNames {
		c := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: of.Namespace, Name: netpolcheck.CompanionName(of, attempt)}}
		netpolcheck.SetCompanion(c, of, spec)
		_, err := api.Create(ctx, c, metav1.CreateOptions{FieldManager: fieldManager})
		if err == nil {
			w.written.Add(1)
			w.log.Info("companion created", "namespace", c.Namespace, "policy", of.Name, "companion", c.Name)
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create companion %s of policy %s: %w", c.Name, of.Name, err)
		}
		there, err := api.Get(ctx, c.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("look at %s, for a companion of policy %s: %w", c.Name, of.Name, err)
		}
		if keyOf(there) == keyOf(c) && netpolcheck.IsCompanion(there) {
			return nil // made a moment ago; its event follows
		}
		w.log.Warn("name of a companion is taken", "namespace", c.Namespace, "policy", of.Name, "name", c.Name)
	}
	return fmt.Errorf("create companion of policy %s: all of its %d names are taken, the last is %s", of.Name, maxNames, netpolcheck.CompanionName(of, maxNames-1))
}

// update changes the companion if it is not what it should be; what others have added to its metadata stays.
func (w *Writer) update(ctx context.Context, have, of *networkingv1.NetworkPolicy, spec *networkingv1.NetworkPolicySpec) error {
	c := have.DeepCopy()
	netpolcheck.SetCompanion(c, of, spec)
	if maps.Equal(c.Labels, have.Labels) && equality.Semantic.DeepEqual(c.OwnerReferences, have.OwnerReferences) && netpolcheck.SameSpec(&c.Spec, &have.Spec) {
		return nil
	}
	if _, err := w.client.NetworkingV1().NetworkPolicies(c.Namespace).Update(ctx, c, metav1.UpdateOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("update companion %s of policy %s: %w", c.Name, of.Name, err)
	}
	w.written.Add(1)
	w.log.Info("companion updated", "namespace", c.Namespace, "policy", of.Name, "companion", c.Name)
	return nil
}

// remove deletes a companion that nobody needs, if it still is what was seen.
func (w *Writer) remove(ctx context.Context, c *networkingv1.NetworkPolicy) error {
	seen := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &c.UID, ResourceVersion: &c.ResourceVersion}}
	if err := w.client.NetworkingV1().NetworkPolicies(c.Namespace).Delete(ctx, c.Name, seen); err != nil {
		return fmt.Errorf("delete companion %s: %w", c.Name, err)
	}
	w.written.Add(1)
	w.log.Info("companion deleted", "namespace", c.Namespace, "companion", c.Name)
	return nil
}
