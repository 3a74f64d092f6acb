package inspect

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/deploy"
)

const (
	adminPort = 15000
	// maxAnswer bounds what is taken of one agent: a dump of a big mesh is some tens of megabytes.
	maxAnswer = 256 << 20
	// askTimeout bounds one request to one agent.
	askTimeout = 20 * time.Second
	// causeTimeout bounds the wait for the reason of an answer that broke off.
	causeTimeout = 2 * time.Second
	// maxAsked is how many agents are asked at once.
	maxAsked = 8
)

// Agents asks agents. The admin server of an agent listens on its own loopback only; [NewAgents] reaches it as kubectl
// port-forward does, so the caller needs the right to create pods/portforward.
type Agents interface {
	// Get returns the body of the answer to GET path of the agent in that pod. It may be called concurrently.
	Get(ctx context.Context, namespace, pod, path string) ([]byte, error)
}

// NewAgents returns the way through the API server.
func NewAgents(a *access.Access) Agents { return forwarder{a} }

type forwarder struct{ access *access.Access }

// Get opens a stream to the port and speaks HTTP on it; no port is opened on this machine.
func (f forwarder) Get(ctx context.Context, namespace, pod, path string) ([]byte, error) {
	dialer, err := f.dialer(namespace, pod)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, dialer)
	if err != nil {
		return nil, fmt.Errorf("reach pod %s: %w", pod, f.access.Explain(err))
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	body, err := ask(conn, path)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask pod %s: %w", pod, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("ask pod %s: %w", pod, err)
	}
	return body, nil
}

// dial returns when ctx ends, of which the dialer knows nothing: a kubelet may take the connection and say nothing.
func dial(ctx context.Context, dialer httpstream.Dialer) (httpstream.Connection, error) {
	type result struct {
		conn httpstream.Connection
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		dialled <- result{conn, err}
	}()
	select {
	case r := <-dialled:
		return r.conn, r.err
	case <-ctx.Done():
		go func() { // it comes too late, if it does
			if r := <-dialled; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// dialer prefers WebSockets, which proxies let through, and falls back to SPDY, which old servers want.
func (f forwarder) dialer(namespace, pod string) (httpstream.Dialer, error) {
	url := f.access.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(f.access.Config)
	if err != nil {
		return nil, fmt.Errorf("prepare port-forward: %w", err)
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	websocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, f.access.Config)
	if err != nil {
		return nil, fmt.Errorf("prepare port-forward: %w", err)
	}
	return portforward.NewFallbackDialerForStreaming(websocket, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// ask sends one request on a connection of port-forward and reads the answer.
func ask(conn httpstream.Connection, path string) ([]byte, error) {
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, strconv.Itoa(adminPort))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	trouble, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	_ = trouble.Close() // nothing is ever sent on it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	failed := make(chan error, 1)
	go func() {
		text, err := io.ReadAll(io.LimitReader(trouble, 4096))
		if len(text) > 0 {
			err = errors.New(Clean(string(text)))
			_ = conn.Close() // nothing will come on the other stream
		} else if err != nil {
			err = nil // the connection ended; the other stream's error says how
		}
		failed <- err
	}()
	response, err := roundTrip(data, path)
	if err == nil {
		return response.content(path)
	}
	// Why the other side has closed the stream may still be on its way.
	timer := time.NewTimer(causeTimeout)
	defer timer.Stop()
	select {
	case cause := <-failed:
		return nil, cmp.Or(cause, err)
	case <-timer.C:
		_ = conn.Close()
		return nil, cmp.Or(<-failed, err)
	}
}

// reply is what an agent answered.
type reply struct {
	code   int
	status string
	body   []byte
}

// content returns the body of a good answer.
func (r *reply) content(path string) ([]byte, error) {
	switch r.code {
	case http.StatusOK:
		return r.body, nil
	case http.StatusNotFound:
		return nil, fmt.Errorf("the agent does not know %s: it is of an older version", path)
	}
	return nil, fmt.Errorf("the agent answers %s: %s", Clean(r.status), Clean(string(r.body[:min(len(r.body), maxText)])))
}

func roundTrip(stream io.ReadWriter, path string) (*reply, error) {
	request, err := http.NewRequest(http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	request.Close = true
	if err := request.Write(stream); err != nil {
		return nil, fmt.Errorf("send request: %w", err)
	}
	response, err := http.ReadResponse(bufio.NewReader(stream), request)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read answer: %w", err)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("read answer: longer than %d bytes", maxAnswer)
	}
	return &reply{response.StatusCode, response.Status, body}, nil
}

// agentPods returns the pods of agents, ordered by node.
func agentPods(ctx context.Context, a *access.Access, namespace string) ([]corev1.Pod, error) {
	list, err := a.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + deploy.DaemonSet})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", a.Explain(err))
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.Labels["app"] != deploy.DaemonSet })
	slices.SortFunc(pods, func(x, y corev1.Pod) int {
		return cmp.Or(cmp.Compare(x.Spec.NodeName, y.Spec.NodeName), cmp.Compare(x.Name, y.Name))
	})
	return pods, nil
}

// each calls fn for every running agent, some at once, and returns when all have answered or ctx ended.
func each(ctx context.Context, pods []corev1.Pod, fn func(context.Context, *corev1.Pod)) {
	var wg sync.WaitGroup
	places := make(chan struct{}, maxAsked)
	for i := range pods {
		pod := &pods[i]
		if pod.Status.Phase != corev1.PodRunning {
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, errors.New("no answer in time"))
			defer cancel()
			fn(ctx, pod)
		})
	}
	wg.Wait()
}

// AskAll asks every agent for what it has at path and calls take with each answer, one after the other. It returns of which
// nodes nothing is known, and why: because the agent gave no answer, or none that take understands.
func AskAll(ctx context.Context, a *access.Access, agents Agents, namespace, path string, take func(body []byte) error) (missing []string, err error) {
	pods, err := agentPods(ctx, a, namespace)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, ErrNoAgents
	}
	var mu sync.Mutex
	miss := func(pod *corev1.Pod, err error) {
		missing = append(missing, fmt.Sprintf("node %s: %s", pod.Spec.NodeName, Clean(err.Error())))
	}
	for i := range pods {
		if phase := pods[i].Status.Phase; phase != corev1.PodRunning {
			miss(&pods[i], fmt.Errorf("its agent is %s", phase))
		}
	}
	each(ctx, pods, func(ctx context.Context, pod *corev1.Pod) {
		body, err := agents.Get(ctx, namespace, pod.Name, path)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			err = take(body)
		}
		if err != nil {
			miss(pod, err)
		}
	})
	slices.Sort(missing)
	return missing, nil
}
