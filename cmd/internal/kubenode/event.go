package kubenode

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Reasons of events on pods.
const (
	reasonFailed   = "CulvertEnrolFailed"
	reasonNoCert   = "CulvertNoCertificate"
	reasonRepaired = "CulvertCaptureRepaired"
	reasonDamaged  = "CulvertCaptureDamaged"
	reasonForeign  = "CulvertForeignSocket"
	reasonIgnored  = "CulvertIgnoredAnnotation"
	reasonLeft     = "CulvertLeftBehind"
)

const (
	eventQueue    = 128              // more are dropped and said in the log, where each is anyway
	eventPause    = time.Minute      // between two of a reason on one pod
	eventInterval = time.Second / 10 // between any two, after a burst of eventQueue
	eventText     = 1024             // the API server's limit of a message
)

// podRef names a pod in an event.
type podRef struct{ namespace, name, uid string }

// recorder writes Kubernetes events on pods from one goroutine. At the limit of its queue or rate an event is dropped:
// events are a courtesy, the log has everything.
type recorder struct {
	client *client
	host   string // the node
	log    *slog.Logger
	queue  chan event

	mu   sync.Mutex
	last map[eventKey]time.Time
}

type eventKey struct{ uid, reason string }

type event struct {
	pod          podRef
	reason, text string
	at           time.Time
}

func newRecorder(c *client, host string, log *slog.Logger) *recorder {
	return &recorder{client: c, host: host, log: log, queue: make(chan event, eventQueue), last: map[eventKey]time.Time{}}
}

// warn queues an event of type Warning. It never blocks.
func (r *recorder) warn(pod podRef, reason, text string) {
	now := time.Now()
	key := eventKey{pod.uid, reason}
	r.mu.Lock()
	if now.Sub(r.last[key]) < eventPause {
		r.mu.Unlock()
		return
	}
	if len(r.last) > 4096 { // pods come and go
		for k, t := range r.last {
			if now.Sub(t) >= eventPause {
				delete(r.last, k)
			}
		}
	}
	r.last[key] = now
	r.mu.Unlock()
	select {
	case r.queue <- event{pod, reason, text, now}:
	default:
		r.log.Warn("event dropped", "pod", pod.namespace+"/"+pod.name, "reason", reason)
	}
}

// run posts until ctx ends.
func (r *recorder) run(ctx context.Context) {
	pause := time.NewTicker(eventInterval)
	defer pause.Stop()
	for {
		select {
		case e := <-r.queue:
			if err := r.client.createEvent(ctx, e.pod.namespace, r.body(e)); err != nil && ctx.Err() == nil {
				r.log.Debug("event not written", "pod", e.pod.namespace+"/"+e.pod.name, "reason", e.reason, "error", err)
			}
		case <-ctx.Done():
			return
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *recorder) body(e event) []byte {
	text := e.text
	if len(text) > eventText {
		text = text[:eventText-3] + "..."
	}
	stamp := e.at.UTC().Format(time.RFC3339)
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": e.reason, "message": text, "count": 1,
		"metadata":       map[string]any{"name": eventName(e), "namespace": e.pod.namespace},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": e.pod.namespace, "name": e.pod.name, "uid": e.pod.uid},
		"source":         map[string]any{"component": "culvert-node", "host": r.host},
		"firstTimestamp": stamp, "lastTimestamp": stamp,
	})
	if err != nil { // strings and numbers cannot fail
		return nil
	}
	return body
}

// eventName is unique and a DNS subdomain, as the pod's name is that it begins with.
func eventName(e event) string {
	name := e.pod.name
	if len(name) > 200 {
		name = strings.TrimRight(name[:200], "-.")
	}
	return fmt.Sprintf("%s.%x", name, e.at.UnixNano())
}
