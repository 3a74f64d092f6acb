package tunnel_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/net/http2"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// diary is a Handler that writes down what it is told. On the loop.
type diary struct {
	id  uint32
	log *[]string
}

func (d *diary) note(format string, args ...any) {
	*d.log = append(*d.log, fmt.Sprintf("%d ", d.id)+fmt.Sprintf(format, args...))
}

func (d *diary) Response(*h2.Header, bool) {}
func (d *diary) DataDone()                 { d.note("done") }
func (d *diary) Writable()                 {}
func (d *diary) Closed(err error)          { d.note("%v", err) }

func (d *diary) Data(p []byte, end bool) {
	d.note("data %q end %t", p, end)
}

// TestRequestsOfOneRead: what a server is told of requests that come in one read, above all with what follows them in it.
func TestRequestsOfOneRead(t *testing.T) {
	connect := []byte{0x02, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x01, 4, 'a', ':', '8', '0'}
	open := func(fr *http2.Framer, id uint32, end bool) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: connect, EndHeaders: true, EndStream: end})
	}
	for _, tc := range []struct {
		name string
		send func(fr *http2.Framer)
		want []string
	}{
		{"alone", func(fr *http2.Framer) { open(fr, 1, false) }, []string{"1 request a:80"}},
		{"ended", func(fr *http2.Framer) { open(fr, 1, true) }, []string{"1 request a:80", `1 data "" end true`, "1 done"}},
		{"with_data", func(fr *http2.Framer) {
			open(fr, 1, false)
			open(fr, 3, false)
			_ = fr.WriteData(3, false, []byte("early"))
			_ = fr.WriteData(3, true, nil)
			open(fr, 5, false)
		}, []string{"1 request a:80", "3 request a:80", `3 data "early" end false`, `3 data "" end true`, "5 request a:80", "3 done"}},
		{"ended_at_once_by_data", func(fr *http2.Framer) {
			open(fr, 1, false)
			_ = fr.WriteData(1, true, nil)
		}, []string{"1 request a:80", `1 data "" end true`, "1 done"}},
		{"taken_back", func(fr *http2.Framer) {
			for id := uint32(1); id < 199; id += 2 {
				open(fr, id, false)
				_ = fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
			open(fr, 199, false)
		}, []string{"199 request a:80"}},
		{"taken_back_with_an_error", func(fr *http2.Framer) {
			open(fr, 1, false)
			_ = fr.WriteWindowUpdate(1, 0)
			open(fr, 3, false)
		}, []string{"3 request a:80"}},
		{"data_before_it_is_taken_back", func(fr *http2.Framer) {
			open(fr, 1, false)
			_ = fr.WriteData(1, false, []byte("early"))
			_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
			open(fr, 3, false)
		}, []string{"3 request a:80"}},
		{"before_the_tunnel_is_lost", func(fr *http2.Framer) {
			open(fr, 1, false)
			_ = fr.WriteRawFrame(http2.FramePushPromise, 0, 1, nil)
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			var log []string
			cfg := f.config()
			cfg.OnRequest = func(st *tunnel.Stream, head *h2.Header) {
				d := &diary{st.ID(), &log}
				d.note("request %s", head.Authority)
				st.Handler = d
			}
			client, fr := f.server(cfg)
			var b bytes.Buffer
			frames := http2.NewFramer(&b, nil)
			frames.AllowIllegalWrites = true
			tc.send(frames)
			_ = frames.WritePing(false, [8]byte{1})
			if _, err := client.Write(b.Bytes()); err != nil { // a record, which is opened at once
				t.Fatal(err)
			}
			if tc.want == nil {
				_ = f.end()
			} else {
				for !next(t, fr, http2.FramePing).(*http2.PingFrame).IsAck() { // next answers those of the tunnel
				}
			}
			f.on(func() {
				if !slices.Equal(log, tc.want) {
					t.Errorf("got %q\nwant %q", log, tc.want)
				}
			})
		})
	}
}

// server starts a server tunnel, with a client of crypto/tls and x/net/http2 that has sent its SETTINGS.
func (f *fixture) server(cfg tunnel.Config) (*tls.Conn, *http2.Framer) {
	f.t.Helper()
	fd, other := peer(f.t)
	client := tls.Client(other, mtls.Client(f.alice, []identity.ID{f.bob.ID}, nil))
	done := make(chan error, 1)
	go func() { done <- client.Handshake() }()
	if _, err := tunnel.Server(f.t.Context(), fd, mtls.Server(f.bob, nil), cfg, nil); err != nil {
		f.t.Fatal(err)
	}
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
	_, _ = client.Write([]byte(http2.ClientPreface))
	fr := http2.NewFramer(client, client)
	if err := fr.WriteSettings(); err != nil {
		f.t.Fatal(err)
	}
	return client, fr
}
