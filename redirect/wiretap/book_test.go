package wiretap

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	client4 = netip.MustParseAddrPort("10.1.1.2:40000")
	server4 = netip.MustParseAddrPort("10.1.2.2:15008")
	client6 = netip.MustParseAddrPort("[fd00:1:1::2]:40000")
	server6 = netip.MustParseAddrPort("[fd00:1:2::2]:15008")
)

const (
	flagSYN = 0x02
	flagACK = 0x10
)

// tcp makes a packet.
func tcp(src, dst netip.AddrPort, seq uint32, flags byte, payload string) []byte {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, flags
	return ip(protoTCP, src, dst, append(b, payload...))
}

func udp(src, dst netip.AddrPort, payload string) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	return ip(protoUDP, src, dst, append(b, payload...))
}

func ip(proto byte, src, dst netip.AddrPort, transport []byte) []byte {
	if src.Addr().Is4() {
		h := make([]byte, 20)
		h[0], h[9] = 0x45, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(transport)))
		copy(h[12:], src.Addr().AsSlice())
		copy(h[16:], dst.Addr().AsSlice())
		return append(h, transport...)
	}
	h := make([]byte, 40)
	h[0], h[6] = 0x60, proto
	binary.BigEndian.PutUint16(h[4:], uint16(len(transport)))
	copy(h[8:], src.Addr().AsSlice())
	copy(h[24:], dst.Addr().AsSlice())
	return append(h, transport...)
}

// record makes a TLS record of n bytes.
func record(kind byte, n int) string {
	return string([]byte{kind, 3, 3, byte(n >> 8), byte(n)}) + strings.Repeat("x", n)
}

func observe(t *testing.T, needles []string, packets ...[]byte) Report {
	t.Helper()
	var bin [][]byte
	for _, n := range needles {
		bin = append(bin, []byte(n))
	}
	b := newBook(bin, 4)
	for _, p := range packets {
		b.packet(p)
	}
	return b.report()
}

func TestDirections(t *testing.T) {
	syn := tcp(client4, server4, 99, flagSYN, "")
	synack := tcp(server4, client4, 4_294_967_290, flagSYN|flagACK, "") // sequence numbers wrap soon after
	send := func(seq uint32, payload string) []byte { return tcp(client4, server4, seq, flagACK, payload) }
	tests := []struct {
		name    string
		packets [][]byte
		want    Direction // to the server
	}{
		{"plain", [][]byte{syn, send(100, "GET / secret")}, Direction{Packets: 2, Bytes: 12, Kind: Plain, Sample: []byte("GET / secret"), Found: []int{0}}},
		{"word_across_packets", [][]byte{syn, send(100, "GET / sec"), send(109, "r"), send(110, "et")}, Direction{Packets: 4, Bytes: 12, Kind: Plain, Sample: []byte("GET / secret"), Found: []int{0}}},
		{"repeated_bytes_count_once", [][]byte{syn, send(100, "GET / sec"), send(100, "GET / sec"), send(106, "secret")}, Direction{Packets: 4, Bytes: 12, Kind: Plain, Sample: []byte("GET / secret"), Found: []int{0}}},
		{"gap_joins_nothing", [][]byte{syn, send(100, "sec"), send(104, "ret")}, Direction{Packets: 3, Bytes: 6, Kind: Unclear, Gaps: 1, Sample: []byte("secret")}},
		{"no_beginning", [][]byte{send(100, record(23, 3))}, Direction{Packets: 1, Bytes: 8, Kind: Unclear, Sample: []byte(record(23, 3))}},
		{"silent", [][]byte{syn, synack}, Direction{Packets: 1}},
		{"records", [][]byte{syn, send(100, record(22, 3)+record(20, 1)), send(114, record(23, 4)+record(21, 2))}, Direction{
			Packets: 3, Bytes: 30, Kind: TLS, Handshake: 1, ApplicationData: 1, OtherRecords: 2,
			Sample: []byte(record(22, 3) + record(20, 1) + record(23, 4) + record(21, 2)),
		}},
		{"record_byte_by_byte", [][]byte{syn, send(100, "\x17"), send(101, "\x03\x03"), send(103, "\x00"), send(104, "\x02ab"), send(107, "\x17\x03\x03\x00\x01c")}, Direction{
			Packets: 6, Bytes: 13, Kind: TLS, ApplicationData: 2, Sample: []byte("\x17\x03\x03\x00\x02ab\x17\x03\x03\x00\x01c"),
		}},
		{"text_after_records", [][]byte{syn, send(100, record(23, 3)), send(108, "secret")}, Direction{
			Packets: 3, Bytes: 14, Kind: Plain, ApplicationData: 1, Sample: []byte(record(23, 3) + "secret"), Found: []int{0},
		}},
		{"record_too_large", [][]byte{syn, send(100, "\x17\x03\x03\x41\x01")}, Direction{Packets: 2, Bytes: 5, Kind: Plain, Sample: []byte("\x17\x03\x03\x41\x01")}},
		{"ports_used_again", [][]byte{syn, send(100, record(23, 3)), tcp(client4, server4, 7, flagSYN, ""), send(8, record(23, 2))}, Direction{
			Packets: 4, Bytes: 15, Kind: TLS, ApplicationData: 2, Sample: []byte(record(23, 3) + record(23, 2)),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := observe(t, []string{"secret"}, tt.packets...)
			if len(r.Flows) != 1 {
				t.Fatalf("got %d flows, want 1", len(r.Flows))
			}
			if r.Flows[0].Client != client4 || r.Flows[0].Server != server4 {
				t.Errorf("got %s -> %s", r.Flows[0].Client, r.Flows[0].Server)
			}
			if diff := cmp.Diff(tt.want, r.Flows[0].ToServer); diff != "" {
				t.Errorf("to server (-want +got):\n%s", diff)
			}
			if r.Found[0] != slices.Contains(tt.want.Found, 0) {
				t.Errorf("report says found=%t", r.Found[0])
			}
		})
	}
}

func TestEncrypted(t *testing.T) {
	conversation := func(client, server netip.AddrPort, up, down string) [][]byte {
		return [][]byte{
			tcp(client, server, 10, flagSYN, ""), tcp(server, client, 4_294_967_290, flagSYN|flagACK, ""),
			tcp(client, server, 11, flagACK, up), tcp(server, client, 4_294_967_291, flagACK, down), tcp(server, client, 4_294_967_291+uint32(len(down)), flagACK, down),
		}
	}
	good := record(22, 9) + record(23, 9)
	tests := []struct {
		name        string
		packets     [][]byte
		encrypted   bool
		unencrypted int // flows that are not tunnels to 15008
	}{
		{"tls4", conversation(client4, server4, good, good), true, 0},
		{"tls6", conversation(client6, server6, good, good), true, 0},
		{"other_port", conversation(client4, netip.MustParseAddrPort("10.1.2.2:443"), good, good), true, 1},
		{"plain_answer", conversation(client4, server4, good, "HTTP/1.1 200 OK"), false, 1},
		{"handshake_only", conversation(client4, server4, record(22, 9), record(22, 9)), false, 1},
		{"nothing_said", conversation(client4, server4, "", ""), false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := observe(t, nil, tt.packets...)
			if len(r.Flows) != 1 || r.Flows[0].Encrypted() != tt.encrypted {
				t.Errorf("got %v, want one flow with encrypted=%t", r, tt.encrypted)
			}
			if got := r.Unencrypted(15008); len(got) != tt.unencrypted {
				t.Errorf("unencrypted: %v, want %d", got, tt.unencrypted)
			}
			if !r.Complete() {
				t.Error("report is not complete")
			}
		})
	}
}

func TestServerIsWhoAnswersTheSYN(t *testing.T) {
	for name, packets := range map[string][][]byte{
		"answer_first": {tcp(server4, client4, 1, flagSYN|flagACK, "")},
		"old_answer":   {tcp(server4, client4, 1, flagACK, "late"), tcp(client4, server4, 9, flagSYN, "")},
	} {
		t.Run(name, func(t *testing.T) {
			if f := observe(t, nil, packets...).Flows[0]; f.Client != client4 || f.Server != server4 {
				t.Errorf("got %s -> %s", f.Client, f.Server)
			}
		})
	}
}

func TestDatagrams(t *testing.T) {
	dns := netip.MustParseAddrPort("10.1.2.2:53")
	r := observe(t, []string{"secret"}, udp(client4, dns, "a sec"), udp(client4, dns, "ret"), udp(dns, client4, "the secret"))
	want := []Flow{{
		Protocol: "udp", Client: client4, Server: dns,
		ToServer: Direction{Packets: 2, Bytes: 8, Kind: Plain, Sample: []byte("a secret")},
		ToClient: Direction{Packets: 1, Bytes: 10, Kind: Plain, Sample: []byte("the secret"), Found: []int{0}},
	}}
	if diff := cmp.Diff(want, r.Flows, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if got := r.With(0); len(got) != 1 {
		t.Errorf("With: %v", got)
	}
}

func TestFlowsAreBounded(t *testing.T) {
	var packets [][]byte
	for port := range uint16(10) {
		from := netip.AddrPortFrom(client4.Addr(), 1000+port)
		packets = append(packets, tcp(from, server4, 1, flagACK, "the secret"))
	}
	r := observe(t, []string{"secret"}, packets[4:]...)
	if len(r.Flows) != 4 || r.Unfollowed != 2 || r.Complete() {
		t.Errorf("%d flows, %d unfollowed, complete=%t", len(r.Flows), r.Unfollowed, r.Complete())
	}
	if !r.Found[0] {
		t.Error("payload beyond the bound was not searched")
	}
}

func TestParseRefuses(t *testing.T) {
	whole := tcp(client4, server4, 1, flagACK, "payload")
	fragment := slices.Clone(whole)
	fragment[6] = 0x20
	long := slices.Clone(whole)
	long[2] = 0xff
	whole6 := tcp(client6, server6, 1, flagACK, "payload")
	offset := slices.Clone(whole)
	offset[32] = 0xf0
	for name, b := range map[string][]byte{
		"empty": {}, "arp": {0, 1, 8, 0}, "short": whole[:19], "fragment": fragment, "longer_than_captured": long,
		"short6": whole6[:30], "tcp_offset": offset, "icmp": ip(1, client4, server4, make([]byte, 20)),
	} {
		t.Run(name, func(t *testing.T) {
			if s, ok := parse(b); ok {
				t.Errorf("taken: %+v", s)
			}
		})
	}
	if s, ok := parse(append(whole, make([]byte, 6)...)); !ok || string(s.payload) != "payload" {
		t.Errorf("padding of short frames: %q, %t", s.payload, ok)
	}
	extended := ip(60, client6, server6, append([]byte{protoTCP, 0, 0, 0, 0, 0, 0, 0}, whole6[40:]...))
	if s, ok := parse(extended); !ok || string(s.payload) != "payload" {
		t.Errorf("extension header: %q, %t", s.payload, ok)
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(tcp(client4, server4, 1, flagSYN, ""), tcp(client4, server4, 2, flagACK, record(23, 5)), uint16(3))
	f.Add(tcp(client6, server6, 1, flagACK, "secret"), udp(client4, server4, "secret"), uint16(1))
	f.Add(ip(60, client6, server6, make([]byte, 40)), []byte{0x45}, uint16(0))
	f.Fuzz(func(t *testing.T, a, b []byte, cut uint16) {
		k := newBook([][]byte{[]byte("secret"), []byte("s")}, 2)
		k.packet(a)
		k.packet(b)
		k.packet(b[:min(int(cut), len(b))])
		k.packet(a)
		r := k.report()
		if r.Packets != 4 {
			t.Errorf("%d packets counted", r.Packets)
		}
		for _, flow := range r.Flows {
			if len(flow.ToServer.Sample) > sampleSize || flow.Bytes() > uint64(2*len(a)+2*len(b)) {
				t.Errorf("flow is larger than what was sent: %v", flow)
			}
		}
	})
}
