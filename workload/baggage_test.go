package workload_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestBaggageOfWorkload(t *testing.T) {
	w := wt.Pod("ns/web-1", nil)
	w.WorkloadName, w.WorkloadType, w.CanonicalName, w.CanonicalRevision = "web", "deployment", "shop", "v1"
	w.Locality = workload.Locality{Region: "r1", Zone: "z1"}
	const want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=shop,service.version=v1,cloud.region=r1,cloud.availability_zone=z1"
	if got := w.Baggage().String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	back, err := workload.ParseBaggage(want)
	if err != nil || back != w.Baggage() {
		t.Errorf("read back: %+v, %v", back, err)
	}
}

func TestBaggageFormat(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   workload.Baggage
		want string
	}{
		{"empty", workload.Baggage{}, ""},
		{"empty-keys-are-left-out", workload.Baggage{Namespace: "ns", Zone: "z"}, "k8s.namespace.name=ns,cloud.availability_zone=z"},
		{"pod", workload.Baggage{WorkloadName: "x", WorkloadType: "pod"}, "k8s.pod.name=x"},
		{"unknown-type", workload.Baggage{WorkloadName: "x", WorkloadType: "y"}, "k8s.deployment.name=x"},
		{"comma", workload.Baggage{Namespace: "a,b", Cluster: "c"}, "k8s.cluster.name=c"},
		{"line-break", workload.Baggage{Namespace: "a\r\nb", Cluster: "c"}, "k8s.cluster.name=c"},
		{"not-ascii", workload.Baggage{Namespace: "ä", Cluster: "c"}, "k8s.cluster.name=c"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.in.String(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestParseBaggage(t *testing.T) {
	for _, tc := range []struct {
		name    string
		lines   []string
		want    workload.Baggage
		wantErr bool
	}{
		{name: "no-header"},
		{name: "empty-values", lines: []string{"k8s.cluster.name=,service.name="}},
		{
			name:  "several-lines",
			lines: []string{"k8s.cluster.name=c,k8s.namespace.name=n", "k8s.job.name=j"},
			want:  workload.Baggage{Cluster: "c", Namespace: "n", WorkloadName: "j", WorkloadType: "job"},
		},
		{name: "cronjob", lines: []string{"k8s.cronjob.name=x"}, want: workload.Baggage{WorkloadName: "x", WorkloadType: "cronjob"}},
		{name: "unknown-keys", lines: []string{"a=b,k8s.node.name=n,k8s.=x,k8s.name=y,service.name=s"}, want: workload.Baggage{Service: "s"}},
		{name: "later-wins", lines: []string{"service.name=a,service.name=b"}, want: workload.Baggage{Service: "b"}},
		{name: "equals-sign-in-value", lines: []string{"service.name=a=b"}, want: workload.Baggage{Service: "a=b"}},
		{name: "junk", lines: []string{",,=,==,service.version", "cloud.region = r "}, want: workload.Baggage{Region: "r"}},
		{name: "not-ascii", lines: []string{"service.name=a", "service.version=\xff"}, wantErr: true},
		{name: "control", lines: []string{"service.name=a\x00"}, wantErr: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := workload.ParseBaggage(tc.lines...)
			if got != tc.want || (err != nil) != tc.wantErr {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func FuzzParseBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=shop")
	f.Add("service.version=v1,cloud.region=r1,cloud.availability_zone=z1")
	f.Add(",,=,==,service.name")
	f.Add("k8s.pod.name=,k8s.job.name=\xff")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := workload.ParseBaggage(s)
		if err != nil {
			if b != (workload.Baggage{}) {
				t.Fatalf("an error came with %+v", b)
			}
			return
		}
		again, err := workload.ParseBaggage(b.String())
		if err != nil {
			t.Fatalf("own output is refused: %v", err)
		}
		if b.WorkloadName == "" {
			b.WorkloadType = ""
		}
		if again != b {
			t.Fatalf("%+v became %+v", b, again)
		}
	})
}
