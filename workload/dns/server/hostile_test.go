package server_test

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/workload/dns/server"
)

func debugLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// hostile lists messages that are no proper question, with the code they get; -1
// for no answer at all.
func hostile(t testing.TB) map[string]struct {
	msg  []byte
	want int
} {
	base := func(change func([]byte) []byte) []byte { return change(pack(t, question("a.example.", dns.TypeA))) }
	type m = struct {
		msg  []byte
		want int
	}
	opt := question("a.example.", dns.TypeA)
	opt.SetEdns0(1232, false)
	twoOpts := opt.Copy()
	twoOpts.Extra = append(twoOpts.Extra, twoOpts.Extra[0])
	transfer := question("a.example.", dns.TypeAXFR)
	return map[string]m{
		"empty":          {nil, -1},
		"short":          {[]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, -1},
		"response":       {base(func(b []byte) []byte { b[2] |= 0x80; return b }), dns.RcodeFormatError},
		"error-response": {base(func(b []byte) []byte { b[2] |= 0x80; b[3] |= 1; return b }), -1},
		"status-opcode":  {base(func(b []byte) []byte { b[2] |= 2 << 3; return b }), dns.RcodeNotImplemented},
		"update-opcode":  {base(func(b []byte) []byte { b[2] |= 5 << 3; return b }), dns.RcodeNotImplemented},
		"no-question":    {base(func(b []byte) []byte { b[5] = 0; return b[:12] }), dns.RcodeFormatError},
		"two-questions":  {base(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), dns.RcodeFormatError},
		"many-questions": {base(func(b []byte) []byte { b[4] = 0xff; return b }), dns.RcodeFormatError},
		"cut-name":       {base(func(b []byte) []byte { return b[:14] }), dns.RcodeFormatError},
		"cut-type":       {base(func(b []byte) []byte { return b[:len(b)-3] }), dns.RcodeFormatError},
		"pointer-loop":   {base(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), dns.RcodeFormatError},
		"pointer-back":   {base(func(b []byte) []byte { b[12], b[13] = 0xc0, 0; return b }), dns.RcodeFormatError},
		"reserved-label": {base(func(b []byte) []byte { b[12] = 0x80; return b }), dns.RcodeFormatError},
		"long-name": {base(func(b []byte) []byte {
			msg := append([]byte(nil), b[:12]...)
			for range 5 {
				msg = append(msg, 63)
				msg = append(msg, make([]byte, 63)...)
			}
			return append(msg, 0, 0, 1, 0, 1)
		}), dns.RcodeFormatError},
		"missing-record": {base(func(b []byte) []byte { b[11] = 1; return b }), dns.RcodeFormatError},
		"many-records":   {base(func(b []byte) []byte { b[10], b[11] = 0xff, 0xff; return b }), dns.RcodeFormatError},
		"long-rdata": {func() []byte {
			b := pack(t, opt)
			b[len(b)-2] = 0xff
			return b
		}(), dns.RcodeFormatError},
		"two-opts":      {pack(t, twoOpts), dns.RcodeFormatError},
		"zone-transfer": {pack(t, transfer), dns.RcodeNotImplemented},
	}
}

func TestHostileMessages(t *testing.T) {
	s := start(t, server.Config{})
	for name, tt := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			patience := 10 * time.Second
			if tt.want < 0 {
				patience = 100 * time.Millisecond
			}
			got := s.raw(t, tt.msg, patience)
			if tt.want < 0 {
				if got != nil {
					t.Errorf("got an answer: %x", got)
				}
				return
			}
			m := new(dns.Msg)
			if err := m.Unpack(got); err != nil {
				t.Fatalf("answer %x: %v", got, err)
			}
			if m.Rcode != tt.want || !m.Response || m.Id != id(tt.msg) || len(m.Answer)+len(m.Ns)+len(m.Extra) != 0 {
				t.Errorf("answer is %v, want %s", m, dns.RcodeToString[tt.want])
			}
		})
	}
	if m := s.ask(t, "udp", question("a.example.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("after all that, a question gets %s", dns.RcodeToString[m.Rcode])
	}
}
