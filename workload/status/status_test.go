package status_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/workload/source/kube"
	"github.com/culvert-mesh/culvert/workload/status"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	services = schema.GroupVersionResource{Version: "v1", Resource: "services"}
	policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	entries  = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
)

// source is a Source whose answer tests set.
type source struct {
	mu      sync.Mutex
	reports []kube.Report
	changed chan struct{}
}

func (s *source) Reports() ([]kube.Report, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reports, s.changed
}

func (s *source) set(reports ...kube.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = reports
	close(s.changed)
	s.changed = make(chan struct{})
}

// lab is a Writer between a source and a fake API server. It lives in a bubble
// of synctest.
type lab struct {
	t      *testing.T
	source *source
	client *dynamicfake.FakeDynamicClient
	writer *status.Writer

	mu      sync.Mutex
	applied []clienttesting.PatchAction
	err     error
	log     workloadtest.Log
}

// logged counts the lines with a word, when all is quiet.
func (l *lab) logged(word string) int {
	synctest.Wait()
	return strings.Count(l.log.String(), word)
}

func start(t *testing.T, objects ...runtime.Object) *lab {
	l := &lab{
		t: t, source: &source{changed: make(chan struct{})},
		client: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
			services: "ServiceList", policies: "AuthorizationPolicyList", entries: "ServiceEntryList",
		}, objects...),
	}
	l.client.PrependReactor("patch", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.applied = append(l.applied, a.(clienttesting.PatchAction))
		return true, &unstructured.Unstructured{Object: map[string]any{}}, l.err
	})
	w, err := status.New(status.Config{Client: l.client, Source: l.source, Logger: slog.New(slog.NewTextHandler(&l.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	l.writer = w
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l
}

// take returns what was applied since the last call, after all is quiet.
func (l *lab) take() []map[string]any {
	l.t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	for _, a := range l.applied {
		if a.GetSubresource() != "status" || a.GetPatchType() != "application/apply-patch+yaml" {
			l.t.Errorf("%s of subresource %q", a.GetPatchType(), a.GetSubresource())
		}
		var m map[string]any
		if err := json.Unmarshal(a.GetPatch(), &m); err != nil {
			l.t.Error(err)
		}
		out = append(out, m)
	}
	l.applied = nil
	return out
}

func (l *lab) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func object(apiVersion, kind string, conditions ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiVersion, "kind": kind,
		"metadata": map[string]any{"namespace": "ns", "name": "x", "uid": "u", "resourceVersion": "7"},
		"status":   map[string]any{"conditions": conditions},
	}}
}

func report(gvr schema.GroupVersionResource, kind string, want ...kube.Condition) kube.Report {
	return kube.Report{
		Resource: gvr, Kind: kind, Manager: "m", Namespace: "ns", Name: "x", UID: "u", Generation: 3, Want: want,
	}
}

var (
	bound    = kube.Condition{Type: "istio.io/WaypointBound", Status: true, Reason: "WaypointAccepted", Message: "yes", ObservedGeneration: 3}
	accepted = kube.Condition{Type: "ZtunnelAccepted", Status: false, Reason: "Invalid", Message: "no", ObservedGeneration: 3}
	foreign  = map[string]any{"type": "Reconciled", "status": "True"}
)

func TestNewRefuses(t *testing.T) {
	full := status.Config{Config: &rest.Config{Host: "https://127.0.0.1:1"}, Source: &source{}}
	if _, err := status.New(full); err != nil {
		t.Fatal(err)
	}
	for name, mod := range map[string]func(*status.Config){
		"config": func(c *status.Config) { c.Config = nil },
		"source": func(c *status.Config) { c.Source = nil },
		"host":   func(c *status.Config) { c.Config = &rest.Config{Host: "::bad::"} },
	} {
		cfg := full
		mod(&cfg)
		if _, err := status.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestApplies(t *testing.T) {
	const since = "2024-01-01T00:00:00Z"
	// The clock of a bubble begins here.
	const now = "2000-01-01T00:00:00Z"
	for _, tc := range []struct {
		name   string
		object *unstructured.Unstructured
		report kube.Report
		want   map[string]any
	}{
		{"service", object("v1", "Service", foreign), report(services, "Service", bound), map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"namespace": "ns", "name": "x", "uid": "u"},
			"status": map[string]any{"conditions": []any{map[string]any{
				"type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": "yes", "lastTransitionTime": now, "observedGeneration": 3.0,
			}}},
		}},
		{"service-pruned", object("v1", "Service", foreign), report(services, "Service"), map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"namespace": "ns", "name": "x", "uid": "u"},
		}},
		{
			"policy-keeps-others", object("security.istio.io/v1", "AuthorizationPolicy", foreign,
				map[string]any{"type": "ZtunnelAccepted", "status": "False", "reason": "Old", "lastTransitionTime": since},
				map[string]any{"type": "WaypointAccepted", "status": "True"}),
			report(policies, "AuthorizationPolicy", accepted), map[string]any{
				"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
				"metadata": map[string]any{"namespace": "ns", "name": "x", "uid": "u", "resourceVersion": "7"},
				"status": map[string]any{"conditions": []any{foreign, map[string]any{
					"type": "ZtunnelAccepted", "status": "False", "reason": "Invalid", "message": "no", "lastTransitionTime": since, "observedGeneration": 3.0,
				}}},
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := start(t, tc.object)
				l.source.set(tc.report)
				if d := cmp.Diff([]map[string]any{tc.want}, l.take()); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

func TestWritesNothingNeedless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, object("v1", "Service"))
		if n := len(l.take()); n != 0 {
			t.Fatalf("%d writes without a report", n)
		}
		l.source.set(report(services, "Service", bound))
		if n := len(l.take()); n != 1 {
			t.Fatalf("%d writes, want 1", n)
		}
		// The watch is late, and other objects change meanwhile.
		for range 3 {
			l.source.set(report(services, "Service", bound))
		}
		if n := len(l.take()); n != 0 {
			t.Fatalf("%d more writes of the same", n)
		}
		other := bound
		other.Message = "other"
		l.source.set(report(services, "Service", other))
		if n := len(l.take()); n != 1 {
			t.Fatalf("%d writes of something new, want 1", n)
		}
		// It came back, and at once somebody undoes it, again and again.
		for range 20 {
			l.source.set()
			synctest.Wait()
			l.source.set(report(services, "Service", other))
			synctest.Wait()
		}
		if n := len(l.take()); n != 0 {
			t.Fatalf("%d writes against somebody who undoes them", n)
		}
		time.Sleep(time.Hour)
		if n := len(l.take()); n == 0 || n > 5 {
			t.Fatalf("%d writes within an hour, want a few", n)
		}
	})
}

// TestNeverGivesUp: it fails for a day, which is said once, then it succeeds without a change of the object or the leader.
func TestNeverGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, object("v1", "Service"))
		l.fail(errors.New("no"))
		l.source.set(report(services, "Service", bound))
		time.Sleep(24 * time.Hour)
		// Every five minutes, and a dozen times before.
		if n := len(l.take()); n < 200 || n > 24*12+12 {
			t.Errorf("%d attempts within a day", n)
		}
		if n := l.logged("WARN"); n != 1 {
			t.Errorf("%d lines say that it cannot be written:\n%s", n, l.log.String())
		}
		if l.writer.Failing() != 1 || l.writer.Failed() < 200 {
			t.Errorf("%d objects and %d attempts are counted", l.writer.Failing(), l.writer.Failed())
		}
		l.fail(nil)
		time.Sleep(5 * time.Minute)
		if n := len(l.take()); n == 0 {
			t.Fatal("it is not tried any more")
		}
		l.source.set()
		synctest.Wait()
		if n := l.logged("written at last"); n != 1 || l.writer.Failing() != 0 {
			t.Errorf("%d lines say that it was written, %d objects fail", n, l.writer.Failing())
		}
		l.fail(errors.New("no"))
		changed := report(services, "Service", bound)
		changed.Want = []kube.Condition{accepted}
		l.source.set(changed)
		if n := len(l.take()); n != 1 {
			t.Errorf("%d attempts of what is new, want 1", n)
		}
		// The object is gone: it fails no more.
		l.source.set()
		synctest.Wait()
		if n := l.writer.Failing(); n != 0 {
			t.Errorf("%d objects that are gone fail", n)
		}
	})
}

func TestTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, object("v1", "Service"))
		l.fail(errors.New("conflict"))
		l.source.set(report(services, "Service", bound))
		if n := len(l.take()); n != 1 {
			t.Fatalf("%d attempts, want 1", n)
		}
		l.fail(nil)
		time.Sleep(status.DefaultBackoff)
		if n := len(l.take()); n != 1 {
			t.Fatalf("%d attempts after the wait, want 1", n)
		}
	})
}

func TestLeavesOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := start(t, object("v1", "Service"))
		successor := report(services, "Service", bound)
		successor.UID = "before"
		gone := report(services, "Service", bound)
		gone.Name = "gone"
		l.source.set(successor, gone)
		if n := len(l.take()); n != 0 {
			t.Errorf("%d writes to objects that are not meant", n)
		}
	})
}

// TestManyAtATime: more objects than may be written at once.
func TestManyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var objects []runtime.Object
		var reports []kube.Report
		for i := range 50 {
			o := object("v1", "Service")
			o.SetName(string(rune('a'+i/10)) + string(rune('a'+i%10)))
			objects = append(objects, o)
			r := report(services, "Service", bound)
			r.Name = o.GetName()
			reports = append(reports, r)
		}
		l := start(t, objects...)
		l.source.set(reports...)
		if n := len(l.take()); n != len(objects) {
			t.Errorf("%d writes, want %d", n, len(objects))
		}
	})
}
