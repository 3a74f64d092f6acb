package proxy_test

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
)

// BenchmarkNewConnections is a connection, one exchange and its end, through two nodes of one process that share the
// machine with both applications. "direct" is the same without them.
func BenchmarkNewConnections(b *testing.B) {
	r := newRig(b)
	l := runLoop(b) // loops hold a processor each while they wait briefly, and the applications need some
	change := func(c *proxy.Config) { c.Observer, c.Loops = nil, []*loop.Loop{l} }
	one, two := r.node(change), r.node(change)
	client, server := one.pod("client", "127.0.10.1"), two.pod("server", "127.0.10.2")
	dst := r.serve(server.ip, func(c *net.TCPConn) {
		b := make([]byte, 64)
		n, _ := c.Read(b)
		_, _ = c.Write(b[:n])
	}).addr
	client.goesAlways(dst)
	run := func(addr netip.AddrPort) func(*testing.B) {
		return func(b *testing.B) {
			b.SetParallelism(8)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 64)
				for pb.Next() {
					c, err := net.Dial("tcp", addr.String())
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.WriteString(c, "hello")
					if _, err := io.ReadFull(c, buf[:5]); err != nil {
						b.Error(err)
					}
					c.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
		}
	}
	b.Run("direct", run(dst))
	b.Run("mesh", run(client.outbound))
}
