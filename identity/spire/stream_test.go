package spire

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// TestRepeatAfterOutage has a workload's stream wait long after many failures, and try at once when roots come again.
func TestRepeatAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := NewDelegated(DelegatedConfig{Address: "unix:///admin.sock"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		var made []time.Time
		refuse := func(context.Context, func()) error {
			mu.Lock()
			defer mu.Unlock()
			made = append(made, time.Now())
			return errors.New("refused")
		}
		attempts := func() []time.Time {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(made)
		}
		go d.repeat(ctx, "pod", maxPause, refuse)
		time.Sleep(5 * time.Minute)
		tries := attempts()
		last := len(tries)
		if last < 10 || last > 20 || tries[last-1].Sub(tries[last-2]) != maxPause {
			t.Fatalf("%d attempts in five minutes", last)
		}

		roots := func() { d.takeBundles(map[identity.TrustDomain]*identity.Bundle{}) }
		roots()
		if len(attempts()) != last {
			t.Error("roots came that had not been away, and the stream was opened")
		}
		d.mu.Lock()
		d.bundleErr = errors.New("refused")
		d.mu.Unlock()
		roots()
		if n := len(attempts()); n != last+1 {
			t.Errorf("%d more attempts when roots came again", n-last)
		}
		time.Sleep(firstPause)
		if len(attempts()) != last+2 {
			t.Errorf("the pause after that was not a short one")
		}
	})
}

// TestRootsAfterExpiry has roots come again, after an outage, before the certificates that replace those of before.
func TestRootsAfterExpiry(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	d, err := NewDelegated(DelegatedConfig{Address: "unix:///admin.sock"})
	if err != nil {
		t.Fatal(err)
	}
	var pushed []*svid.SVID
	d.Subscribe(func(s *svid.SVID) { pushed = append(pushed, s) })
	w := Workload{Namespace: "default", ServiceAccount: "web"}
	d.Enter(w)
	id := "spiffe://td/ns/default/sa/web"
	old, fresh := ca.SVID(t, id, identitytest.Expired()), ca.SVID(t, id)
	take := func(s *svid.SVID) { d.takeDocuments(d.workloads[w], []document{{s.ID, s.Certificates, s.PrivateKey}}) }
	roots := func() { d.takeBundles(map[identity.TrustDomain]*identity.Bundle{old.ID.TrustDomain(): ca.Bundle()}) }
	take(old)
	roots()
	if len(pushed) != 0 {
		t.Error("an expired certificate is announced because of new roots")
	}
	if _, err := d.Fetch(t.Context(), old.ID); err == nil || !strings.Contains(err.Error(), "what it granted expired at ") {
		t.Errorf("got %v", err)
	}
	take(fresh)
	if got, err := d.Fetch(t.Context(), old.ID); err != nil || len(pushed) != 1 || !got.Leaf().Equal(fresh.Leaf()) {
		t.Errorf("%d announced, %v", len(pushed), err)
	}
}
