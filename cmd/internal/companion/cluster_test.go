package companion_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/culvert-mesh/culvert/cmd/internal/companion"
	"github.com/culvert-mesh/culvert/cmd/internal/kubetest"
	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is an API server and what the tests do to it.
type cluster struct {
	*kubetest.Server
	t testing.TB
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	return &cluster{Server: kubetest.New(), t: t}
}

// policy makes a user's policy: the pods app=<name>, port 80 from app=client.
func (c *cluster) policy(namespace, name string) *networkingv1.NetworkPolicy {
	c.t.Helper()
	port := intstr.FromInt32(80)
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
	return c.create(p)
}

func (c *cluster) create(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	c.t.Helper()
	p, err := c.NetworkingV1().NetworkPolicies(p.Namespace).Create(c.t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// like returns a policy with another name, and a UID of that name.
func (c *cluster) like(name, other string) *networkingv1.NetworkPolicy {
	c.t.Helper()
	p, err := c.NetworkingV1().NetworkPolicies("shop").Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	p = p.DeepCopy()
	p.Name, p.UID = other, types.UID("uid-"+other)
	return p
}

// edit changes a policy as a person would.
func (c *cluster) edit(namespace, name string, change func(*networkingv1.NetworkPolicy)) {
	c.t.Helper()
	api := c.NetworkingV1().NetworkPolicies(namespace)
	p, err := api.Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	p = p.DeepCopy()
	change(p)
	if _, err := api.Update(c.t.Context(), p, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) delete(namespace, name string) {
	c.t.Helper()
	if err := c.NetworkingV1().NetworkPolicies(namespace).Delete(c.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// companions are those that are there, ordered by name.
func (c *cluster) companions(namespace string) []networkingv1.NetworkPolicy {
	c.t.Helper()
	list, err := c.NetworkingV1().NetworkPolicies(namespace).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p networkingv1.NetworkPolicy) bool { return !netpolcheck.IsCompanion(&p) })
}

// one waits until the policy has one companion, and that is as it should be.
func (c *cluster) one(namespace, name string) *networkingv1.NetworkPolicy {
	c.t.Helper()
	var found networkingv1.NetworkPolicy
	eventually(c.t, "policy "+name+" has its companion", func() error {
		of, err := c.NetworkingV1().NetworkPolicies(namespace).Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		all := slices.DeleteFunc(c.companions(namespace), func(p networkingv1.NetworkPolicy) bool {
			return p.Labels[netpolcheck.LabelCompanionOf] != string(of.UID)
		})
		if len(all) != 1 {
			return fmt.Errorf("there are %d", len(all))
		}
		found = all[0]
		want := netpolcheck.CompanionSpec(of, mesh())
		if want == nil || !netpolcheck.SameSpec(want, &found.Spec) {
			return fmt.Errorf("it is %+v, want %+v", found.Spec, want)
		}
		if o := found.OwnerReferences; len(o) != 1 || o[0].UID != of.UID || o[0].Name != of.Name || o[0].Kind != "NetworkPolicy" || o[0].Controller == nil || !*o[0].Controller {
			return fmt.Errorf("its owners are %v", o)
		}
		return nil
	})
	return &found
}

// none waits until there is no companion.
func (c *cluster) none(namespace string) {
	c.t.Helper()
	eventually(c.t, "no companion is in "+namespace, func() error {
		if all := c.companions(namespace); len(all) > 0 {
			return fmt.Errorf("there are %d, %s first", len(all), all[0].Name)
		}
		return nil
	})
}

func mesh() netpolcheck.Mesh {
	m := netpolcheck.Mesh{DNS: true}
	m.Enrolment.Exclude = []string{"kube-system"}
	return m
}

// start runs a Writer until the test ends, or stop is called.
func (c *cluster) start() (w *companion.Writer, stop func()) {
	c.t.Helper()
	w, err := companion.New(companion.Config{Client: c, Mesh: mesh(), Logger: slog.New(slog.NewTextHandler(c.t.Output(), nil))})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	watches := c.Count("watch networkpolicies")
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			c.t.Error(err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	c.t.Cleanup(stop)
	// What is created between list and watch is lost in the fake.
	eventually(c.t, "the watch is open", func() error {
		if c.Count("watch networkpolicies") == watches {
			return fmt.Errorf("none")
		}
		return nil
	})
	return w, stop
}

// eventually polls until there is no error.
func eventually(t testing.TB, what string, ask func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err = ask(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within 30 s: %v", what, err)
}
