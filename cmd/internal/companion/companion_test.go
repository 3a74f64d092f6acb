package companion_test

import (
	"fmt"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/cmd/internal/companion"
	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

func TestNew(t *testing.T) {
	if _, err := companion.New(companion.Config{}); err == nil {
		t.Error("no client is taken")
	}
}

// written waits until the Writer has counted what it did, which comes a moment later.
func written(t *testing.T, w *companion.Writer, want uint64) {
	t.Helper()
	eventually(t, "all is counted", func() error {
		if got := w.Written(); got != want {
			return fmt.Errorf("%d written, want %d", got, want)
		}
		return nil
	})
}

// Each policy gets one companion, whether it was there before or comes later; it follows and it goes.
func TestLife(t *testing.T) {
	c := newCluster(t)
	c.policy("shop", "old")
	w, _ := c.start()
	c.one("shop", "old")
	c.policy("shop", "new")
	first := c.one("shop", "new")

	c.edit("shop", "new", func(p *networkingv1.NetworkPolicy) { p.Spec.PodSelector.MatchLabels["app"] = "other" })
	c.edit("shop", "new", func(p *networkingv1.NetworkPolicy) {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	})
	if changed := c.one("shop", "new"); changed.Name != first.Name || changed.UID != first.UID {
		t.Errorf("the companion was %s and is %s", first.Name, changed.Name)
	}

	// The user adds the port: none is needed. And takes it away again.
	hbone := intstr.FromInt32(netpolcheck.Port)
	for range 2 {
		c.edit("shop", "new", func(p *networkingv1.NetworkPolicy) {
			p.Spec.Ingress[0].Ports = append(p.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Port: &hbone})
		})
		c.edit("shop", "old", func(p *networkingv1.NetworkPolicy) { p.Spec.Ingress = nil })
		c.none("shop")
		c.edit("shop", "new", func(p *networkingv1.NetworkPolicy) { p.Spec.Ingress[0].Ports = p.Spec.Ingress[0].Ports[:1] })
		c.one("shop", "new")
	}

	// The garbage collector may leave it (--cascade=orphan); it would isolate pods for nobody.
	c.delete("shop", "new")
	c.none("shop")
	if w.Failed() > 0 {
		t.Errorf("%d failed", w.Failed())
	}
}

// What others do to a companion is undone; what they add beside stays.
func TestDrift(t *testing.T) {
	c := newCluster(t)
	c.start()
	c.policy("shop", "web")
	made := c.one("shop", "web")
	c.edit("shop", made.Name, func(p *networkingv1.NetworkPolicy) {
		p.Spec.PodSelector = metav1.LabelSelector{}
		p.Spec.Ingress[0].From = nil
		p.OwnerReferences = nil
		p.Annotations = map[string]string{"note": "mine"}
		p.Labels["team"] = "a"
	})
	if got := c.one("shop", "web"); got.Annotations["note"] != "mine" || got.Labels["team"] != "a" {
		t.Errorf("lost: %v %v", got.Annotations, got.Labels)
	}
	c.edit("shop", made.Name, func(p *networkingv1.NetworkPolicy) { p.OwnerReferences = nil })
	c.one("shop", "web")
	c.delete("shop", made.Name)
	c.one("shop", "web")
	// Without its labels it is a policy of a user, and has a companion of its own.
	c.edit("shop", c.one("shop", "web").Name, func(p *networkingv1.NetworkPolicy) { p.Labels = nil })
	c.one("shop", "web")
}

// A companion has none itself, and a policy that only calls itself managed has one.
func TestCompanionOfCompanion(t *testing.T) {
	c := newCluster(t)
	c.policy("shop", "web")
	_, stop := c.start()
	c.one("shop", "web")
	stop()
	w, _ := c.start() // a new leader finds everything as it should be
	p := c.policy("shop", "managed")
	c.edit("shop", p.Name, func(p *networkingv1.NetworkPolicy) {
		p.Labels = map[string]string{netpolcheck.LabelManagedBy: netpolcheck.ManagedBy}
	})
	c.one("shop", "managed")
	written(t, w, 1)
	if all := c.companions("shop"); len(all) != 2 {
		t.Errorf("%d companions", len(all))
	}
}

// Names that others have are left to them, also when they look like a companion's.
func TestNameTaken(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := c.policy("kube-system", "web") // no companion there, but a UID
	moved := p.DeepCopy()
	moved.Namespace = "shop"
	for attempt, labels := range []map[string]string{nil, {netpolcheck.LabelManagedBy: netpolcheck.ManagedBy, netpolcheck.LabelCompanionOf: "another"}} {
		foreign := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: netpolcheck.CompanionName(p, attempt), Labels: labels}}
		c.create(foreign)
	}
	// The tracker takes the policy as it is, with the UID that the names were made from.
	if err := c.Tracker().Add(moved); err != nil {
		t.Fatal(err)
	}
	got := c.one("shop", "web")
	if want := netpolcheck.CompanionName(p, 2); got.Name != want {
		t.Errorf("it is called %s, want %s", got.Name, want)
	}
	for attempt := range 2 {
		there, err := c.NetworkingV1().NetworkPolicies("shop").Get(t.Context(), netpolcheck.CompanionName(p, attempt), metav1.GetOptions{})
		if err != nil || len(there.Spec.Ingress) > 0 {
			t.Errorf("somebody else's policy was touched: %v %v", there, err)
		}
	}
}

// An API server that fails is asked again.
func TestFailures(t *testing.T) {
	c := newCluster(t)
	w, _ := c.start()
	c.policy("shop", "first")
	c.one("shop", "first")
	for _, tt := range []struct {
		verb   string
		change func()
		done   func()
	}{
		{"create", func() {
			if err := c.Tracker().Add(c.like("first", "second")); err != nil {
				t.Fatal(err)
			}
		}, func() { c.one("shop", "second") }},
		{"update", func() {
			p := c.like("second", "second")
			p.Spec.PodSelector.MatchLabels["app"] = "x"
			if err := c.Tracker().Update(networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), p, "shop"); err != nil {
				t.Fatal(err)
			}
		}, func() { c.one("shop", "second") }},
		{"delete", func() {
			for _, name := range []string{"first", "second"} {
				if err := c.Tracker().Delete(networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), "shop", name); err != nil {
					t.Fatal(err)
				}
			}
		}, func() { c.none("shop") }},
	} {
		before := w.Failed()
		c.Fail(tt.verb+" networkpolicies", 2, apierrors.NewServiceUnavailable("disturbed"))
		tt.change() // past what disturbs the Writer
		tt.done()
		if got := w.Failed() - before; got != 2 {
			t.Errorf("%s failed %d times", tt.verb, got)
		}
	}
}

// Of two companions (two leaders, one of them slow) one is left.
func TestTwice(t *testing.T) {
	c := newCluster(t)
	p := c.policy("shop", "web")
	for attempt := range 3 {
		twin := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: netpolcheck.CompanionName(p, attempt)}}
		netpolcheck.SetCompanion(twin, p, netpolcheck.CompanionSpec(p, mesh()))
		c.create(twin)
	}
	c.start()
	c.one("shop", "web")
}

// A policy that waits for its finalizers still holds, and so does its companion; one that was deleted meanwhile is not made
// again.
func TestTerminating(t *testing.T) {
	c := newCluster(t)
	w, _ := c.start()
	c.policy("shop", "stays")
	c.policy("shop", "gone")
	c.one("shop", "stays")
	lone := c.one("shop", "gone")
	for _, name := range []string{"stays", "gone"} {
		c.edit("shop", name, func(p *networkingv1.NetworkPolicy) {
			now := metav1.Now()
			p.DeletionTimestamp, p.Finalizers = &now, []string{"example.com/wait"}
		})
	}
	c.delete("shop", lone.Name)
	c.policy("shop", "after")
	c.one("shop", "after") // so the others have been looked at
	c.one("shop", "stays")
	written(t, w, 3)
	if all := c.companions("shop"); len(all) != 2 {
		t.Errorf("%d companions", len(all))
	}
}

// Nothing is made where the mesh never is.
func TestExcluded(t *testing.T) {
	c := newCluster(t)
	c.start()
	c.policy("kube-system", "web")
	c.policy("shop", "web")
	c.one("shop", "web")
	if all := c.companions("kube-system"); len(all) > 0 {
		t.Errorf("made %s", all[0].Name)
	}
	if !strings.HasPrefix(c.companions("shop")[0].Name, "web-hbone-") {
		t.Errorf("made %s", c.companions("shop")[0].Name)
	}
}
