package proxy

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
)

// witness is a judge that allows everything and remembers by which workload it was to judge.
type witness struct{ seen []*workload.Workload }

func (j *witness) concerns(Direction) bool { return true }

func (j *witness) changed() <-chan struct{} { return nil }

func (j *witness) sit(_ *Pod, local *localState) (basis any, look func(*Flow) error) {
	j.seen = append(j.seen, local.workload)
	return local.workload, allowed
}

// TestReviewIsOfTheNewestWorkload: a review that had to wait for another judges by the workload as it is then. The other may
// have judged by it already.
func TestReviewIsOfTheNewestWorkload(t *testing.T) {
	store := workload.New()
	w := &workload.Workload{
		UID: "cluster1//Pod/default/web", Name: "web", Namespace: "default", ServiceAccount: "web", TrustDomain: "cluster.local",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, AuthorizationPolicies: []string{"default/deny"},
	}
	store.Apply([]workload.Event{workload.Upsert(w)})
	p := &Pod{proxy: &Proxy{cfg: Config{Store: store}}, cfg: PodConfig{Namespace: "default", Name: "web", ServiceAccount: "web"}}
	j, done := &witness{}, make(chan struct{})
	p.review.mu.Lock() // the other
	go func() {
		defer close(done)
		p.rejudge(j)
	}()
	for i := 0; i < 10_000 && p.local.Load() == nil; i++ { // lets it come as far as it can
		runtime.Gosched()
	}
	next := *w
	next.AuthorizationPolicies = nil
	store.Apply([]workload.Event{workload.Upsert(&next)})
	p.review.mu.Unlock()
	<-done
	if got := j.seen[0].AuthorizationPolicies; len(got) != 0 {
		t.Errorf("judged by a workload that names %v; it names none any more", got)
	}
}
