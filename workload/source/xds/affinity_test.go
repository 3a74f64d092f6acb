package xds

import (
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"
)

func extension(t *testing.T, name string, config proto.Message) *workloadapi.Extension {
	t.Helper()
	packed, err := anypb.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return &workloadapi.Extension{Name: name, Config: packed}
}

// TestSessionAffinity: whatever the extension says, the service is taken.
func TestSessionAffinity(t *testing.T) {
	const name = "culvert.io/session-affinity"
	minute := durationpb.New(time.Minute)
	broken := extension(t, name, minute)
	broken.Config.Value = []byte{0xff}
	type extensions = []*workloadapi.Extension
	for _, tt := range []struct {
		name string
		in   extensions
		want time.Duration
		warn string
	}{
		{"none", nil, 0, ""},
		{"minute", extensions{extension(t, name, minute)}, time.Minute, ""},
		{"of-others", extensions{extension(t, "other", wrapperspb.Bool(true)), {Name: "bare"}, nil}, 0, ""},
		{"after-others", extensions{nil, {Name: "bare"}, extension(t, name, minute)}, time.Minute, ""},
		{"twice", extensions{extension(t, name, minute), extension(t, name, durationpb.New(time.Hour))}, time.Minute, ""},
		{"no-config", extensions{{Name: name}}, 0, "decode: "},
		{"other-type", extensions{extension(t, name, wrapperspb.Int64(60))}, 0, "mismatched message type"},
		{"broken", extensions{broken}, 0, "decode: "},
		{"zero", extensions{extension(t, name, new(durationpb.Duration))}, 0, "time 0s is not positive"},
		{"negative", extensions{extension(t, name, durationpb.New(-time.Second))}, 0, "time -1s is not positive"},
		{"invalid", extensions{extension(t, name, &durationpb.Duration{Seconds: math.MaxInt64})}, 0, "exceeds +10000 years"},
		{"longest", extensions{extension(t, name, &durationpb.Duration{Seconds: 315_576_000_000})}, math.MaxInt64, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log strings.Builder
			c := &Client{cfg: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
			packed, err := anypb.New(&workloadapi.Address{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
				Namespace: "ns", Hostname: "h", Extensions: tt.in,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			e, _, err := c.address(&discovery.Resource{Name: "ns/h", Resource: packed})
			if err != nil {
				t.Fatal(err)
			}
			if e.Service.SessionAffinity != tt.want {
				t.Errorf("affinity is %s, want %s", e.Service.SessionAffinity, tt.want)
			}
			if (log.Len() > 0) != (tt.warn != "") || !strings.Contains(log.String(), tt.warn) {
				t.Errorf("log is %q, want %q", log.String(), tt.warn)
			}
		})
	}
}

// TestExportTo: what cannot be read leaves the service to its own namespace.
func TestExportTo(t *testing.T) {
	const name = "culvert.io/export-to"
	list := func(values ...any) *structpb.ListValue {
		l, err := structpb.NewList(values)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, tt := range []struct {
		name string
		in   *workloadapi.Extension
		want []string
		warn string
	}{
		{"none", nil, nil, ""},
		{"two", extension(t, name, list("a", "b")), []string{"a", "b"}, ""},
		{"of-others", extension(t, "other", list("a")), nil, ""},
		{"empty", extension(t, name, list()), nil, ""},
		{"no-text", extension(t, name, list("a", 1.0)), nil, "no text"},
		{"other-type", extension(t, name, wrapperspb.Int64(60)), nil, "mismatched message type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log strings.Builder
			c := &Client{cfg: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
			packed, err := anypb.New(&workloadapi.Address{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
				Namespace: "ns", Hostname: "h", Extensions: []*workloadapi.Extension{tt.in}, Visibility: workloadapi.Service_NAMESPACE,
			}}})
			if err != nil {
				t.Fatal(err)
			}
			e, _, err := c.address(&discovery.Resource{Name: "ns/h", Resource: packed})
			if err != nil || !slices.Equal(e.Service.ExportTo, tt.want) || e.Service.VisibleTo("ns") != (tt.want == nil) {
				t.Errorf("got %+v, %v", e.Service, err)
			}
			if got := log.String(); (tt.warn == "") != (got == "") || !strings.Contains(got, tt.warn) {
				t.Errorf("log %q, want %q", got, tt.warn)
			}
		})
	}
}
