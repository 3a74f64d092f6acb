package selector_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/selector"
)

func TestMatching(t *testing.T) {
	sel := func(texts ...string) []selector.Selector {
		all, err := selector.Parse(strings.Join(texts, "|"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	type labels = map[string]string
	pod, namespace := labels{"a": "1", "b": ""}, labels{"team.example/x": "y", selector.LabelMode: selector.ModeAmbient}
	for _, tt := range []struct {
		name      string
		selectors []selector.Selector
		in        bool
	}{
		{"empty_takes_all", []selector.Selector{{}}, true},
		{"none_takes_none", []selector.Selector{}, false},
		{"default", sel(""), true},
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
		{"set", []selector.Selector{{Pod: selector.Labels{{Key: "a", Operator: selector.In, Values: []string{"0", "1"}}}}}, true},
		{"unknown_operator", []selector.Selector{{Pod: selector.Labels{{Key: "a", Operator: "Like"}}}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			by := selector.Matching(tt.selectors, pod, namespace)
			if (by != nil) != tt.in {
				t.Errorf("taken by %v, want %v", by, tt.in)
			}
			for _, s := range tt.selectors {
				if err := s.Validate(); (err != nil) != (tt.name == "unknown_operator") {
					t.Errorf("Validate: %v", err)
				}
			}
		})
	}
	for _, text := range []string{"a in (b,c)", "=x", "a=b=c", "a,,b", "!", "a b", "x;y;z", "a|!"} {
		if all, err := selector.Parse(text); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", text, all)
		}
	}
}

// TestJSON: a plugin reads what an agent of another version has written.
func TestJSON(t *testing.T) {
	all, err := selector.Parse("mesh=yes,!debug;team!=ops|;mesh")
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{"pod":[{"label":"mesh","operator":"In","values":["yes"]},{"label":"debug","operator":"DoesNotExist"}],` +
		`"namespace":[{"label":"team","operator":"NotIn","values":["ops"]}]},{"namespace":[{"label":"mesh","operator":"Exists"}]}]`
	text, err := json.Marshal(all)
	if err != nil || string(text) != want {
		t.Errorf("written as %s (%v), want %s", text, err, want)
	}
	var got []selector.Selector
	if err := json.Unmarshal([]byte(want), &got); err != nil || !reflect.DeepEqual(got, all) {
		t.Errorf("read as %v (%v), want %v", got, err, all)
	}
}
