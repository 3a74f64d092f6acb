package enrol_test

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
)

type labels = map[string]string

func TestSelection(t *testing.T) {
	mode := func(v string) labels { return labels{enrol.LabelMode: v} }
	for _, tt := range []struct {
		name      string
		pod       enrol.Pod
		namespace labels
		in        bool
		why       string
	}{
		{"unlabelled", enrol.Pod{}, nil, false, "no selector"},
		{"namespace_none", enrol.Pod{}, mode("none"), false, "no selector"},
		{"pod_alone", enrol.Pod{Labels: mode("ambient")}, nil, true, "pod has istio.io/dataplane-mode=ambient"},
		{"pod_against_namespace", enrol.Pod{Labels: mode("ambient")}, mode("none"), true, "pod has"},
		{"namespace_alone", enrol.Pod{}, mode("ambient"), true, "namespace has istio.io/dataplane-mode=ambient"},
		{"pod_none", enrol.Pod{Labels: mode("none")}, mode("ambient"), false, "no selector"},
		{"pod_any_other_word", enrol.Pod{Labels: mode("sidecar")}, mode("ambient"), true, "namespace has"},
		{"pod_empty_word", enrol.Pod{Labels: mode("")}, mode("ambient"), true, "namespace has"},
		{"case_matters", enrol.Pod{Labels: mode("Ambient")}, nil, false, "no selector"},
		{"host_network", enrol.Pod{HostNetwork: true, Labels: mode("ambient")}, mode("ambient"), false, "network of its host"},
		{"sidecar", enrol.Pod{Annotations: labels{enrol.AnnotationSidecar: ""}, Labels: mode("ambient")}, nil, false, "sidecar"},
		{"ended", enrol.Pod{Terminal: true, Labels: mode("ambient")}, nil, false, "has ended"},
		{"excluded", enrol.Pod{Namespace: "kube-system", Labels: mode("ambient")}, mode("ambient"), false, "kube-system is excluded"},
		{"own", enrol.Pod{Namespace: "culvert-system", Labels: labels{"app": "culvert-node", enrol.LabelMode: "ambient"}}, nil, false, "mesh's own"},
		{"own_app_elsewhere", enrol.Pod{Namespace: "team", Labels: labels{"app": "culvert-node"}}, mode("ambient"), true, "namespace has"},
		{"other_app_in_own_namespace", enrol.Pod{Namespace: "culvert-system", Labels: labels{"app": "x"}}, mode("ambient"), true, "namespace has"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := enrol.Decide(tt.pod, enrol.Namespace{Labels: tt.namespace}, enrol.Settings{
				Exclude: []string{"kube-system"}, OwnNamespace: "culvert-system", OwnApps: []string{"culvert-node", "culvert-controller"},
			})
			if d.In != tt.in || !strings.Contains(d.Why, tt.why) {
				t.Errorf("in = %v because %q, want %v because of %q", d.In, d.Why, tt.in, tt.why)
			}
		})
	}
}

func TestHopeless(t *testing.T) {
	s := enrol.Settings{Exclude: []string{"kube-system"}}
	for _, tt := range []struct {
		name string
		pod  enrol.Pod
		want bool
	}{
		{"host_network", enrol.Pod{HostNetwork: true}, true},
		{"excluded", enrol.Pod{Namespace: "kube-system"}, true},
		{"ended", enrol.Pod{Terminal: true}, false},
		{"sidecar", enrol.Pod{Annotations: labels{enrol.AnnotationSidecar: "x"}}, false},
		{"unlabelled", enrol.Pod{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := enrol.Hopeless(tt.pod, s); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestOwnSelectors(t *testing.T) {
	sel := func(texts ...string) []enrol.Selector {
		var out []enrol.Selector
		for _, text := range texts {
			s, err := enrol.ParseSelector(text)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, s)
		}
		return out
	}
	pod := enrol.Pod{Labels: labels{"a": "1", "b": ""}}
	ns := enrol.Namespace{Labels: labels{"team.example/x": "y"}}
	for _, tt := range []struct {
		name      string
		selectors []enrol.Selector
		in        bool
	}{
		{"empty_takes_all", sel(""), true},
		{"none_takes_none", []enrol.Selector{}, false},
		{"equal", sel("a=1"), true},
		{"equal_twice", sel("a==1"), true},
		{"unequal", sel("a!=1"), false},
		{"unequal_absent", sel("c!=1"), true},
		{"exists", sel("b"), true},
		{"exists_not", sel("!b"), false},
		{"absent", sel("!c"), true},
		{"both_parts", sel("a=1;team.example/x=y"), true},
		{"one_part_fails", sel("a=1;team.example/x=z"), false},
		{"all_conditions", sel("a=1,b=2"), false},
		{"any_selector", sel("a=2", ";team.example/x"), true},
		{"set", []enrol.Selector{{Pod: enrol.LabelSelector{{Key: "a", Operator: enrol.In, Values: []string{"0", "1"}}}}}, true},
		{"unknown_operator", []enrol.Selector{{Pod: enrol.LabelSelector{{Key: "a", Operator: "Like"}}}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := enrol.Decide(pod, ns, enrol.Settings{Selectors: tt.selectors}); d.In != tt.in {
				t.Errorf("in = %v (%s), want %v", d.In, d.Why, tt.in)
			}
		})
	}
	for _, text := range []string{"a in (b,c)", "=x", "a=b=c", "a,,b", "!", "a b", "x;y;z"} {
		if s, err := enrol.ParseSelector(text); err == nil {
			t.Errorf("ParseSelector(%q) = %s, want an error", text, s)
		}
	}
}
