package kubenode

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// The annotation that says how far a pod is, and its words.
const (
	annotation = "ambient.istio.io/redirection"
	enabled    = "enabled"
	pending    = "pending"
	absent     = ""
)

// daemonSetsPath is where namespaces are that DaemonSets are in.
const daemonSetsPath = "/apis/apps/v1/namespaces"

// requestTimeout bounds one request other than lists and watches.
const requestTimeout = 10 * time.Second

// client is what is asked of the API server.
type client struct {
	rest rest.Interface
}

func newClient(cfg *rest.Config) (*client, error) {
	c := rest.CopyConfig(cfg)
	c.APIPath = "/api"
	c.GroupVersion = &groupVersion
	c.ContentType = runtime.ContentTypeJSON
	c.AcceptContentTypes = runtime.ContentTypeJSON
	c.NegotiatedSerializer = serializer.NewCodecFactory(newScheme()).WithoutConversion()
	if c.QPS == 0 {
		c.QPS, c.Burst = 50, 100 // a node has some hundred pods, each of which is patched once or twice in its life
	}
	if c.UserAgent == "" {
		c.UserAgent = "culvert-node"
	}
	r, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make client of the API server: %w", err)
	}
	return &client{rest: r}, nil
}

func (c *client) podsOf(node string) cache.ListerWatcher {
	return cache.NewListWatchFromClient(c.rest, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node))
}

func (c *client) namespaces() cache.ListerWatcher {
	return cache.NewListWatchFromClient(c.rest, "namespaces", metav1.NamespaceAll, fields.Everything())
}

// daemonSets lists and watches one.
func (c *client) daemonSets(namespace, name string) cache.ListerWatcher {
	request := func(o metav1.ListOptions) *rest.Request {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		return c.rest.Get().AbsPath(daemonSetsPath, namespace, "daemonsets").VersionedParams(&o, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return request(o).Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			return request(o).Watch(ctx)
		},
	}
}

// annotate writes the annotation of one pod, or removes it when state is absent. A pod of the same name and another UID
// is not touched: the API server refuses the patch with a conflict.
func (c *client) annotate(ctx context.Context, p *pod, state string) error {
	var value any = state
	if state == absent {
		value = nil
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "annotations": map[string]any{annotation: value}}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// The subresource, so that patching "pods/status" is all that the agent must be allowed.
	err = c.rest.Patch(types.MergePatchType).Namespace(p.Namespace).Resource("pods").Name(p.Name).SubResource("status").Body(body).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("annotate pod %s/%s %q: %w", p.Namespace, p.Name, state, err)
	}
	return nil
}

// createEvent posts an event, which is a JSON object of core/v1.
func (c *client) createEvent(ctx context.Context, namespace string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return c.rest.Post().Namespace(namespace).Resource("events").Body(body).Do(ctx).Error()
}

// daemonSet reports whether the DaemonSet is on its way out, alone or with its namespace. Its errors are those of the API
// server about the DaemonSet.
func (c *client) daemonSet(ctx context.Context, namespace, name string) (deleting bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	deleting, err = c.deleting(ctx, daemonSetsPath, namespace, "daemonsets", name)
	if err != nil || deleting {
		return deleting, err
	}
	// Of what is in a namespace that is deleted pods may go before their DaemonSet. In doubt it is not.
	deleting, err = c.deleting(ctx, "/api/v1/namespaces", namespace)
	return deleting && err == nil, nil
}

func (c *client) deleting(ctx context.Context, path ...string) (bool, error) {
	body, err := c.rest.Get().AbsPath(path...).Do(ctx).Raw()
	if err != nil {
		return false, err
	}
	var m struct {
		Metadata struct {
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return false, fmt.Errorf("read %s: %w", strings.Join(path, "/"), err)
	}
	return m.Metadata.DeletionTimestamp != nil, nil
}
