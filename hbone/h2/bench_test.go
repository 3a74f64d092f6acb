package h2_test

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// BenchmarkFeedData is what one read of a bulk stream costs: 256 KiB as DATA frames, and the credit for them.
func BenchmarkFeedData(b *testing.B) {
	for _, bench := range []struct {
		name        string
		frame, read int
	}{{"frames_of_16KiB", 16384, 256 << 10}, {"frames_of_1KiB", 1024, 256 << 10}, {"frames_of_100B", 100, 100 * 2600}} {
		b.Run(bench.name, func(b *testing.B) {
			r := newRig(b, h2.Config{Server: true, StreamWindow: 1 << 20}, whole)
			r.preamble(true)
			r.w.connect(1)
			r.feed()
			for range bench.read / bench.frame {
				r.w.data(1, false, strings.Repeat("x", bench.frame))
			}
			in, ev := r.w.take(), &sink{}
			st := r.stream(1)
			b.SetBytes(int64(bench.read))
			b.ReportAllocs()
			for b.Loop() {
				if err := r.s.Feed(in, ev); err != nil {
					b.Fatal(err)
				}
				r.s.Drained(st, bench.read)
				r.s.Sent(len(r.s.Out()))
			}
		})
	}
}

// BenchmarkExchange is a connection's life: request, answer, a byte each way, the end both ways.
func BenchmarkExchange(b *testing.B) {
	c, s := h2.NewSession(h2.Config{}), h2.NewSession(h2.Config{Server: true})
	client, server := &peer{s: c}, &peer{s: s, server: true}
	move := func(from *h2.Session, to *peer) {
		if err := to.s.Feed(from.Out(), to); err != nil {
			b.Fatal(err)
		}
		from.Sent(len(from.Out()))
	}
	move(c, server)
	move(s, client)
	req := &h2.Header{Method: "CONNECT", Authority: "10.0.0.1:8080", Fields: []h2.Field{
		{Name: "baggage", Value: "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=a,service.name=a,service.version=v1"},
		{Name: "forwarded", Value: `for="10.0.0.7:41234"`},
		{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},
	}}
	buf := make([]byte, h2.FrameHeaderLen+1)
	b.ReportAllocs()
	for b.Loop() {
		st, err := c.Open(req)
		if err != nil {
			b.Fatal(err)
		}
		move(c, server)
		move(s, client)
		c.DataHeader(buf, st, 1, false)
		if err := s.Feed(buf, server); err != nil {
			b.Fatal(err)
		}
		c.End(st)
		move(c, server)
		move(s, client)
		if !st.Gone() {
			b.Fatal("the stream is not gone")
		}
	}
}

// peer answers and ends what its peer opens and ends.
type peer struct {
	sink
	s      *h2.Session
	server bool
}

func (p *peer) OnHeaders(st *h2.Stream, _ *h2.Header, _ bool) {
	if p.server {
		p.s.Respond(st, 200, nil, false)
	}
}

func (p *peer) OnData(st *h2.Stream, _ []byte, end bool) {
	if end {
		p.s.End(st)
	}
}

// BenchmarkTakenBack is a request that its peer takes back at once, in records of 64 of them.
func BenchmarkTakenBack(b *testing.B) {
	const each, records = 64, 15
	w := newWire()
	var in [][]byte
	for i := range uint32(each * records) {
		w.connect(2*i + 1)
		w.reset(2*i+1, h2.Cancel)
		if i%each == each-1 {
			in = append(in, w.take())
		}
	}
	w.text(h2.Preface)
	w.settings()
	preface := w.take()
	ev := &sink{}
	b.ReportAllocs()
	for b.Loop() {
		s := h2.NewSession(h2.Config{Server: true})
		if err := s.Feed(preface, ev); err != nil {
			b.Fatal(err)
		}
		for _, p := range in {
			if err := s.Feed(p, ev); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*each*records), "ns/request")
}
