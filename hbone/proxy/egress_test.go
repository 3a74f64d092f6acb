package proxy_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

// cutOut wants the n-th outbound flow to have been ended by the outbound policy.
func cutOut(t *testing.T, one *node, n int) {
	t.Helper()
	if f := one.seen.ended(t, proxy.Outbound, n); !errors.Is(f.Err, proxy.ErrOutboundPolicy) || f.Flag != proxy.FlagDeny || f.Early {
		t.Errorf("flow ended with %v, flag %s, early %t", f.Err, f.Flag, f.Early)
	}
}

// A namespace that becomes REGISTRY_ONLY loses its connections to unknown destinations, and only those.
func TestOutboundModeIsLive(t *testing.T) {
	r := newRig(t)
	modes := egress.New(egress.AllowAny)
	one, two := r.node(func(c *proxy.Config) { c.Outbound = modes }), r.node(nil)
	client, server := one.pod("client", "127.0.10.1"), two.pod("server", "127.0.10.2")
	member, stranger := r.echo(server.ip), r.echo(netip.MustParseAddr("127.0.30.1"))
	registered := r.echo(netip.MustParseAddr("127.0.30.2"))
	r.store.Apply(wt.Events(wt.Service("default/api.example.com", []string{"/127.0.30.2/32"},
		wt.Ports(registered.Port(), registered.Port()), wt.Balance(workload.LBPassthrough))))

	tunnel, out, known := client.dial(member), client.dial(stranger), client.dial(registered)
	exchange(t, tunnel, "hello")
	exchange(t, known, "hello")
	exchange(t, out, "hello")
	modes.Set("somebody-else", egress.RegistryOnly)
	exchange(t, out, "still")
	modes.Set("default", egress.RegistryOnly)
	wantReset(t, out)
	cutOut(t, one, 1)
	exchange(t, tunnel, "still")
	exchange(t, known, "still")
	wantReset(t, client.dial(stranger))

	modes.Clear("default")
	out = client.dial(stranger)
	exchange(t, out, "again")
	modes.Set("default", egress.RegistryOnly) // as it was when the flows were looked at
	wantReset(t, out)
	cutOut(t, one, 3)
}

// Connections to what a ServiceEntry has let out end with it; those to members outlive the service that they were made
// through.
func TestRegistryIsLive(t *testing.T) {
	r := newRig(t)
	one, two := r.node(func(c *proxy.Config) { c.Outbound = egress.New(egress.RegistryOnly) }), r.node(nil)
	client, server := one.pod("client", "127.0.10.1"), two.pod("server", "127.0.10.2")
	member, plain := r.echo(server.ip), r.echo(netip.MustParseAddr("127.0.30.1"))
	endpoint := r.echo(netip.MustParseAddr("127.0.30.2"))

	passing := wt.Service("default/a.example.com", []string{"127.0.30.1"}, wt.Ports(plain.Port(), plain.Port()), wt.Balance(workload.LBPassthrough))
	static := wt.Service("default/b.example.com", []string{"127.0.20.1"}, wt.Ports(80, endpoint.Port()))
	w := wt.Pod("default/b", []string{"127.0.30.2"}, wt.Plain, wt.In("default/b.example.com"))
	w.UID = "cluster1/networking.istio.io/ServiceEntry/default/b/127.0.30.2"
	web := wt.Service("default/web", []string{"127.0.20.2"}, wt.Ports(80, member.Port()))
	next := *server.w
	wt.In("default/web")(&next)
	r.store.Apply(wt.Events(passing, static, w, web, &next))

	one1, one2 := client.dial(plain), client.dial(netip.MustParseAddrPort("127.0.20.1:80"))
	tunnel := client.dial(netip.MustParseAddrPort("127.0.20.2:80"))
	exchange(t, one1, "hello")
	exchange(t, one2, "hello")
	exchange(t, tunnel, "hello")

	r.store.Apply([]workload.Event{workload.Removal(web.Key().String())})
	r.store.Apply([]workload.Event{workload.Removal(passing.Key().String())})
	wantReset(t, one1)
	cutOut(t, one, 1)
	exchange(t, one2, "still")
	r.store.Apply([]workload.Event{workload.Removal(w.UID), workload.Removal(static.Key().String())})
	wantReset(t, one2)
	cutOut(t, one, 2)
	exchange(t, tunnel, "still")
}

// What was decided before an entry went, and is established after it, does not stay.
func TestRegistryOvertakes(t *testing.T) {
	r := newRig(t)
	asked, answer := make(chan struct{}), make(chan struct{})
	addr := netip.MustParseAddr("127.0.30.1")
	one := r.node(func(c *proxy.Config) {
		c.Outbound = egress.New(egress.RegistryOnly)
		c.Resolve = func(context.Context, *workload.Workload, string) ([]netip.Addr, error) {
			close(asked)
			<-answer
			return []netip.Addr{addr}, nil
		}
	})
	client := one.pod("client", "127.0.10.1")
	dst := r.echo(addr)
	svc := wt.Service("default/a.example.com", []string{"127.0.20.1"}, wt.Ports(80, dst.Port()))
	w := wt.Pod("default/a", nil, wt.Plain, wt.In("default/a.example.com"), func(w *workload.Workload) {
		w.UID, w.Hostname = "cluster1/networking.istio.io/ServiceEntry/default/a/a.example.com", "a.example.com"
	})
	r.store.Apply(wt.Events(svc, w))
	c := client.dial(netip.MustParseAddrPort("127.0.20.1:80"))
	<-asked
	r.store.Apply([]workload.Event{workload.Removal(svc.Key().String()), workload.Removal(w.UID)})
	time.Sleep(300 * time.Millisecond) // the judges have looked by now; if not, so much the easier
	close(answer)
	wantReset(t, c)
	cutOut(t, one, 1)
}
