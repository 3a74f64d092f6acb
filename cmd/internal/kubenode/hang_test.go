package kubenode_test

import (
	"context"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

// hung is an API server that takes requests and does not answer.
type hung struct{}

func (hung) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

type nothing struct{}

func (nothing) Start(context.Context, podset.Pod) (func(context.Context), error) { return nil, nil }
func (nothing) Add(netip.Addr, string) error                                     { return nil }
func (nothing) Remove(netip.Addr, string) error                                  { return nil }
func (nothing) Find(context.Context, map[string]procns.Wanted) (map[string]*netns.NS, []procns.Problem) {
	return nil, nil
}

// SIGTERM while the API server hangs: connections begin to drain when Uninstalled has returned (culvert-node: cluster.leave,
// then proxy.Stop with the same context). The question must leave them most of the drain timeout, whose default is 5 s; the
// chart's is 25 s.
func TestUninstalledLeavesTimeToDrain(t *testing.T) {
	for _, drain := range []time.Duration{5 * time.Second, 25 * time.Second} {
		t.Run(drain.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set, err := podset.New(podset.Config{Runner: nothing{}})
				if err != nil {
					t.Fatal(err)
				}
				agent, err := kubenode.New(kubenode.Config{
					REST: &rest.Config{Host: "http://api", Transport: hung{}}, Node: "n1", Namespace: "culvert-system", DaemonSet: "culvert-node",
					Options: func() redirect.Options { return redirect.Options{} }, Set: set, Finder: nothing{}, HostRules: nothing{},
					Certified: func(context.Context, podset.Pod) error { return nil },
				})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { // ends what New has started
					ended, end := context.WithCancel(t.Context())
					end()
					_ = agent.Run(ended)
				}()
				ctx, cancel := context.WithTimeout(t.Context(), drain)
				defer cancel()
				agent.Uninstalled(ctx)
				deadline, _ := ctx.Deadline()
				if left := time.Until(deadline); left < min(drain*3/4, drain-3*time.Second) {
					t.Errorf("%s of %s are left for connections to end", left, drain)
				}
			})
		})
	}
}
