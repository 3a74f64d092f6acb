// Package docs_test holds the specification of the wire against independent implementations and against Culvert's own.
package docs_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/workload"
)

// document is docs/hbone.md: its text, its vectors, and its tables.
type document struct {
	text    string
	vectors map[string][]byte
}

func load(t *testing.T) document {
	t.Helper()
	b, err := os.ReadFile("hbone.md")
	if err != nil {
		t.Fatal(err)
	}
	d := document{text: string(b), vectors: map[string][]byte{}}
	for _, m := range regexp.MustCompile("(?ms)^```hex (\\S+)\n(.*?)^```$").FindAllStringSubmatch(d.text, -1) {
		name := m[1]
		if _, ok := d.vectors[name]; ok {
			t.Fatalf("vector %s is there twice", name)
		}
		var digits strings.Builder
		for line := range strings.Lines(m[2]) {
			line, _, _ = strings.Cut(line, "#")
			for _, f := range strings.Fields(line) {
				digits.WriteString(f)
			}
		}
		if d.vectors[name], err = hex.DecodeString(digits.String()); err != nil {
			t.Fatalf("vector %s: %v", name, err)
		}
	}
	return d
}

func (d document) vector(t *testing.T, name string) []byte {
	t.Helper()
	b, ok := d.vectors[name]
	if !ok {
		t.Fatalf("no vector %s", name)
	}
	return b
}

// rows returns the table whose header line is given, one slice of cells a row.
func (d document) rows(t *testing.T, head string) [][]string {
	t.Helper()
	_, rest, ok := strings.Cut(d.text, "\n"+head+"\n")
	if !ok {
		t.Fatalf("no table %q", head)
	}
	var out [][]string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for _, c := range strings.Split(strings.Trim(line, "|\n"), "|") {
			cells = append(cells, strings.TrimSpace(c))
		}
		if !strings.HasPrefix(cells[0], "---") {
			out = append(out, cells)
		}
	}
	return out
}

// frame is a row of the tables of 13.1 and 13.2.
type frame struct{ name, text, from string }

func (d document) frames(t *testing.T, section string) []frame {
	t.Helper()
	_, rest, ok := strings.Cut(d.text, "### "+section)
	if !ok {
		t.Fatalf("no section %s", section)
	}
	var out []frame
	for _, r := range (document{text: rest}).rows(t, "| name | frame | from |") {
		out = append(out, frame{r[0], r[1], r[2]})
	}
	return out
}

// TestEveryVectorIsChecked: a vector that no table names would be checked by nothing.
func TestEveryVectorIsChecked(t *testing.T) {
	d := load(t)
	known := map[string]bool{}
	for _, section := range []string{"13.1", "13.2"} {
		for _, f := range d.frames(t, section) {
			known[f.name] = true
			d.vector(t, f.name)
		}
	}
	for _, s := range tlsSuites {
		for _, part := range tlsParts {
			known[s.name+"-"+part] = true
			d.vector(t, s.name+"-"+part)
		}
	}
	for name := range d.vectors {
		if !known[name] {
			t.Errorf("vector %s is checked by nothing", name)
		}
	}
}

// TestFramesXNet reads every frame with x/net.
func TestFramesXNet(t *testing.T) {
	d := load(t)
	for _, section := range []string{"13.1", "13.2"} {
		for _, f := range d.frames(t, section) {
			b := d.vector(t, f.name)
			if f.text == "preface" {
				if string(b) != http2.ClientPreface {
					t.Errorf("%s is %q", f.name, b)
				}
				continue
			}
			fr := http2.NewFramer(io.Discard, bytes.NewReader(b))
			got, err := fr.ReadFrame()
			if err != nil {
				t.Errorf("%s: %v", f.name, err)
				continue
			}
			if text := describe(t, got); text != f.text {
				t.Errorf("%s reads %q, the document says %q", f.name, text, f.text)
			}
			if _, err := fr.ReadFrame(); err != io.EOF {
				t.Errorf("%s: something follows the frame", f.name)
			}
		}
	}
}

func describe(t *testing.T, f http2.Frame) string {
	h := f.Header()
	end := func(set bool) string {
		if set {
			return " END_STREAM"
		}
		return ""
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ACK"
		}
		s := "SETTINGS"
		if err := f.ForeachSetting(func(v http2.Setting) error { s += fmt.Sprintf(" %v=%d", v.ID, v.Val); return v.Valid() }); err != nil {
			t.Error(err)
		}
		return s
	case *http2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE stream=%d increment=%d", h.StreamID, f.Increment)
	case *http2.HeadersFrame:
		s := fmt.Sprintf("HEADERS stream=%d", h.StreamID)
		if f.HeadersEnded() {
			s += " END_HEADERS"
		}
		return s + end(f.StreamEnded())
	case *http2.DataFrame:
		return fmt.Sprintf("DATA stream=%d length=%d", h.StreamID, len(f.Data())) + end(f.StreamEnded())
	case *http2.PingFrame:
		if f.IsAck() {
			return "PING ACK"
		}
		return "PING"
	case *http2.GoAwayFrame:
		return fmt.Sprintf("GOAWAY last=%d code=%v", f.LastStreamID, f.ErrCode)
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM stream=%d code=%v", h.StreamID, f.ErrCode)
	}
	return h.String()
}

// headerList decodes a HEADERS vector with x/net's decoder, which may keep no table.
func headerList(t *testing.T, b []byte) string {
	t.Helper()
	f, err := http2.NewFramer(io.Discard, bytes.NewReader(b)).ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	fields, err := hpack.NewDecoder(0, nil).DecodeFull(f.(*http2.HeadersFrame).HeaderBlockFragment())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range fields {
		out = append(out, f.Name+": "+f.Value)
	}
	return strings.Join(out, "\n")
}

var exchange = struct{ authority, source, destination, forwarded, traceparent string }{
	authority:   "10.244.2.7:8080",
	source:      "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=a,service.name=a,service.version=v1",
	destination: "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=b,service.name=b,service.version=v1",
	forwarded:   `for="10.244.1.5:41234";host=b.default.svc.cluster.local`,
	traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
}

func TestHeadersXNet(t *testing.T) {
	d := load(t)
	x := exchange
	if got, want := headerList(t, d.vector(t, "connect")), ":method: CONNECT\n:authority: "+x.authority+"\nbaggage: "+x.source+
		"\nforwarded: "+x.forwarded+"\ntraceparent: "+x.traceparent; got != want {
		t.Errorf("request is\n%s\nwant\n%s", got, want)
	}
	if got, want := headerList(t, d.vector(t, "ok")), ":status: 200\nbaggage: "+x.destination; got != want {
		t.Errorf("answer is\n%s\nwant\n%s", got, want)
	}
	if got := headerList(t, d.vector(t, "refused")); got != ":status: 401" {
		t.Errorf("refusal is %s", got)
	}
	for _, payload := range []struct{ name, want string }{
		{"data-up", "ping\n"}, {"data-down", "pong\n"}, {"ping", "alive\x00\x00\x00"}, {"pong", "alive\x00\x00\x00"},
		{"drain-ping", "drain\x00\x00\x00"}, {"drain-pong", "drain\x00\x00\x00"},
	} {
		if got := d.vector(t, payload.name)[9:]; string(got) != payload.want {
			t.Errorf("%s carries %q", payload.name, got)
		}
	}
}

// TestBaggage: the field's value is what the workload model writes and reads.
func TestBaggage(t *testing.T) {
	b := workload.Baggage{Cluster: "Kubernetes", Namespace: "default", WorkloadName: "a", WorkloadType: "deployment", Service: "a", Revision: "v1"}
	if got := b.String(); got != exchange.source {
		t.Errorf("baggage is written %s", got)
	}
	if got, err := workload.ParseBaggage(exchange.source); err != nil || got != b {
		t.Errorf("baggage reads %+v, %v", got, err)
	}
}

// TestSettingsTable holds the table of section 4 against what a session sends and the vectors.
func TestSettingsTable(t *testing.T) {
	d := load(t)
	want := map[bool][]string{}
	for _, r := range d.rows(t, "| setting | client | server |") {
		name, _, _ := strings.Cut(r[0], " ")
		for i, server := range []bool{false, true} {
			if v := r[1+i]; v != "–" {
				want[server] = append(want[server], name+"="+v)
			}
		}
	}
	increment := regexp.MustCompile(`WINDOW_UPDATE on stream 0 by (\d+)`).FindStringSubmatch(d.text)
	if increment == nil {
		t.Fatal("the first WINDOW_UPDATE is not in the text")
	}
	for _, server := range []bool{false, true} {
		fr := http2.NewFramer(io.Discard, bytes.NewReader(bytes.TrimPrefix(h2.NewSession(h2.Config{Server: server}).Out(), []byte(h2.Preface))))
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := describe(t, f), "SETTINGS "+strings.Join(want[server], " "); got != want {
			t.Errorf("sent %s, the document says %s", got, want)
		}
		if f, err = fr.ReadFrame(); err != nil {
			t.Fatal(err)
		}
		if got, want := describe(t, f), "WINDOW_UPDATE stream=0 increment="+increment[1]; got != want {
			t.Errorf("sent %s, the document says %s", got, want)
		}
	}
}

// end is one of Culvert's sessions in the exchange.
type end struct {
	s      *h2.Session
	stream *h2.Stream
	log    []string
}

func (e *end) add(format string, args ...any) { e.log = append(e.log, fmt.Sprintf(format, args...)) }

func (e *end) OnSettings() { e.add("settings") }
func (e *end) OnHeaders(st *h2.Stream, h *h2.Header, _ bool) {
	e.stream = st
	e.add("headers %s%d", h.Method, h.Status)
}
func (e *end) OnData(_ *h2.Stream, p []byte, fin bool) { e.add("data %q %v", p, fin) }
func (e *end) OnWindow(*h2.Stream)                     {}
func (e *end) OnReset(st *h2.Stream, c h2.ErrCode, fault string) {
	e.add("reset %d %v %s", st.ID, c, fault)
}
func (e *end) OnGoAway(last uint32, c h2.ErrCode, _ string) { e.add("goaway %d %v", last, c) }
func (e *end) OnPong(b [8]byte)                             { e.add("pong %s", bytes.TrimRight(b[:], "\x00")) }

func (e *end) data(p string) []byte {
	b := append(make([]byte, h2.FrameHeaderLen), p...)
	e.s.DataHeader(b, e.stream, len(p), false)
	return b
}

// TestExchangeCulvert replays 13.1 with Culvert's sessions: each sends exactly the vectors, and understands the other's.
func TestExchangeCulvert(t *testing.T) {
	d := load(t)
	x := exchange
	client, server := &end{s: h2.NewSession(h2.Config{})}, &end{s: h2.NewSession(h2.Config{Server: true})}
	act := map[string]func() []byte{
		"connect": func() []byte {
			var err error
			client.stream, err = client.s.Open(&h2.Header{Method: "CONNECT", Authority: x.authority, Fields: []h2.Field{
				{Name: "baggage", Value: x.source}, {Name: "forwarded", Value: x.forwarded}, {Name: "traceparent", Value: x.traceparent}}})
			if err != nil {
				t.Fatal(err)
			}
			return nil
		},
		"ok": func() []byte {
			server.s.Respond(server.stream, 200, []h2.Field{{Name: "baggage", Value: x.destination}}, false)
			return nil
		},
		"data-up":      func() []byte { return client.data("ping\n") },
		"data-down":    func() []byte { return server.data("pong\n") },
		"end-up":       func() []byte { client.s.End(client.stream); return nil },
		"end-down":     func() []byte { server.s.End(server.stream); return nil },
		"ping":         func() []byte { client.s.Ping([8]byte([]byte("alive\x00\x00\x00"))); return nil },
		"goaway-first": func() []byte { server.s.GoAway(false, h2.NoError, ""); return nil },
		"drain-ping":   func() []byte { server.s.Ping([8]byte([]byte("drain\x00\x00\x00"))); return nil },
		"goaway-final": func() []byte { server.s.GoAway(true, h2.NoError, ""); return nil },
	}
	for _, f := range d.frames(t, "13.1") {
		from, to := client, server
		if f.from == "server" {
			from, to = server, client
		}
		want := d.vector(t, f.name)
		var got []byte
		if f := act[f.name]; f != nil {
			got = f()
		}
		if got == nil {
			out := from.s.Out()
			got = bytes.Clone(out[:min(len(want), len(out))])
			from.s.Sent(len(got))
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: Culvert sends\n%x\nthe document says\n%x", f.name, got, want)
		}
		if err := to.s.Feed(want, to); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
	}
	if len(client.s.Out())+len(server.s.Out()) > 0 {
		t.Error("more is sent than the document says")
	}
	if got, want := strings.Join(client.log, "; "), `settings; headers 200; data "pong\n" false; data "" true; pong alive; goaway 2147483647 NO_ERROR; goaway 1 NO_ERROR`; got != want {
		t.Errorf("the client saw %s", got)
	}
	if got, want := strings.Join(server.log, "; "), `settings; headers CONNECT0; data "ping\n" false; data "" true; pong drain`; got != want {
		t.Errorf("the server saw %s", got)
	}
}

// TestRefusalCulvert replays 13.2.
func TestRefusalCulvert(t *testing.T) {
	d := load(t)
	client, server := &end{s: h2.NewSession(h2.Config{})}, &end{s: h2.NewSession(h2.Config{Server: true})}
	move := func(from, to *end) []byte {
		b := bytes.Clone(from.s.Out())
		from.s.Sent(len(b))
		if err := to.s.Feed(b, to); err != nil {
			t.Fatal(err)
		}
		return b
	}
	open := func() *h2.Stream {
		st, err := client.s.Open(&h2.Header{Method: "CONNECT", Authority: exchange.authority})
		if err != nil {
			t.Fatal(err)
		}
		move(client, server)
		return st
	}
	open() // before the server's SETTINGS
	server.s.Respond(server.stream, 401, nil, true)
	answer := move(server, client)
	if want := append(d.vector(t, "refused"), d.vector(t, "refused-stop")...); !bytes.Contains(answer, want[9:]) {
		// The first block of this server carries the table size update, so only what follows the frame header can be compared.
		t.Errorf("the server sends %x, want %x", answer, want)
	}
	st := open()
	client.s.Reset(st, h2.ConnectError)
	if got := move(client, server); !bytes.Equal(got, d.vector(t, "abort")) {
		t.Errorf("the client sends %x", got)
	}
	if got, want := strings.Join(server.log[len(server.log)-2:], "; "), "headers CONNECT0; reset 3 CONNECT_ERROR "; got != want {
		t.Errorf("the server saw %s", got)
	}
}

// TestNumbers: figures of the text that the code has too, so that changing one asks for the other.
func TestNumbers(t *testing.T) {
	d := load(t)
	number := func(pattern string) int {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(d.text)
		if m == nil {
			t.Fatalf("no %q in the text", pattern)
		}
		n, err := strconv.Atoi(strings.ReplaceAll(m[1], ",", ""))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// Section 11: how many pings are too many.
	s := h2.NewSession(h2.Config{})
	e := &end{s: s}
	if err := s.Feed(d.vector(t, "server-settings"), e); err != nil {
		t.Fatal(err)
	}
	burst := number(`([\d,]+) at once, then`)
	for i := range burst - 1 { // the SETTINGS counted too
		if err := s.Feed(d.vector(t, "ping"), e); err != nil {
			t.Fatalf("ping %d: %v", i, err)
		}
	}
	rate := number(`at once, then ([\d,]+) a second`)
	s.Now += int64(1e9) / int64(rate)
	if err := s.Feed(d.vector(t, "ping"), e); err != nil {
		t.Errorf("a ping at the stated rate: %v", err)
	}
	if err := s.Feed(d.vector(t, "ping"), e); err == nil {
		t.Error("more pings than stated are taken")
	}
	// Section 4: streams before SETTINGS.
	if n, known := h2.NewSession(h2.Config{}).PeerStreams(); int(n) != number(`a client opens at most (\d+) at once`) || known {
		t.Errorf("%d streams before SETTINGS", n)
	}
	// Section 8: what a DATA frame holds.
	if n := number(`Culvert sends DATA of at most ([\d,]+) octets`); n != h2.MaxData-h2.FrameHeaderLen {
		t.Errorf("DATA of %d octets does not fill a record", n)
	}
}
