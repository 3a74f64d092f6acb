package enrol_test

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

type labels = map[string]string

func TestSelection(t *testing.T) {
	mode := func(v string) labels { return labels{selector.LabelMode: v} }
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
		{"own", enrol.Pod{Namespace: "culvert-system", Labels: labels{"app": "culvert-node", selector.LabelMode: "ambient"}}, nil, false, "mesh's own"},
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

// Selectors of the administrator's own take the place of the default ones.
func TestOwnSelectors(t *testing.T) {
	own := []selector.Selector{{Pod: selector.Labels{{Key: "a", Operator: selector.Exists}}}}
	for _, tt := range []struct {
		pod labels
		in  bool
	}{{labels{"a": ""}, true}, {labels{selector.LabelMode: "ambient"}, false}} {
		if d := enrol.Decide(enrol.Pod{Labels: tt.pod}, enrol.Namespace{}, enrol.Settings{Selectors: own}); d.In != tt.in {
			t.Errorf("%v: in = %v (%s)", tt.pod, d.In, d.Why)
		}
	}
}
