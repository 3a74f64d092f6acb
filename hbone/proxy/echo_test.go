package proxy_test

import (
	"io"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/proxy"
)

func TestEchoBetweenNodes(t *testing.T) {
	r := newRig(t)
	one, two := r.node(nil), r.node(nil)
	client, server := one.pod("client", "127.0.10.1"), two.pod("server", "127.0.10.2")
	dst := r.echo(server.ip)

	c := client.dial(dst)
	exchange(t, c, "hello")
	if flows := client.Flows(); len(flows) != 1 || flows[0].OriginalDst != dst || flows[0].ActualDst != server.inbound {
		t.Errorf("client's flows are %+v", flows)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("behind the end: %q, %v", b, err)
	}

	out := one.seen.ended(t, proxy.Outbound, 1)
	in := two.seen.ended(t, proxy.Inbound, 1)
	for _, f := range []*proxy.Flow{out, in} {
		if f.Err != nil || f.Flag != proxy.FlagNone || f.Early || !f.MutualTLS() {
			t.Errorf("%s flow ended with %v, flag %s, early %t", f.Direction, f.Err, f.Flag, f.Early)
		}
		if up, down := f.Bytes(); up != 5 || down != 5 {
			t.Errorf("%s flow moved %d and %d bytes", f.Direction, up, down)
		}
		if f.Source.Workload.Name != "client" || f.Destination.Workload.Name != "server" {
			t.Errorf("%s flow is from %v to %v", f.Direction, f.Source.Workload, f.Destination.Workload)
		}
		if f.Source.ID != client.w.Identity() || f.Destination.ID != server.w.Identity() {
			t.Errorf("%s flow is from %s to %s", f.Direction, f.Source.ID, f.Destination.ID)
		}
		if f.Authority != dst.String() || f.Protocol != proxy.HBONE {
			t.Errorf("%s flow asked for %s over %s", f.Direction, f.Authority, f.Protocol)
		}
	}
	if out.ActualDst != server.inbound || in.ActualDst != dst || in.Source.Addr.Addr() != client.ip {
		t.Errorf("outbound went to %s, inbound to %s from %s", out.ActualDst, in.ActualDst, in.Source.Addr)
	}
}
