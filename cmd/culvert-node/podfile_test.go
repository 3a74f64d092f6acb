package main

import (
	"strings"
	"testing"
)

const goodPods = `- uid: 1
  name: a
  namespace: default
  serviceAccount: sa
  netns: /run/netns/a
- {uid: 2, name: b, namespace: default, serviceAccount: sa, netns: /run/netns/b}
`

func TestDecodePods(t *testing.T) {
	list, err := decodePods("pods", []byte(goodPods))
	if err != nil || len(list) != 2 || list[1].UID != "2" || list[1].NetNS != "/run/netns/b" || list[1].line != 6 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, empty := range []string{"", "[]", "# nobody\n", "null"} {
		if list, err := decodePods("pods", []byte(empty)); err != nil || len(list) != 0 {
			t.Errorf("%q: %+v, %v", empty, list, err)
		}
	}
	for _, tt := range []struct{ name, content, want string }{
		{"no_yaml", "- uid: [\n", "pods:1: "},
		{"two_documents", goodPods + "---\n[]\n", "pods: has more than one document"},
		{"no_list", "uid: a\n", "pods:1: want a list of pods {uid, name, namespace, serviceAccount, netns}"},
		{"a_key", "-----BEGIN PRIVATE KEY-----\nSECRET\n", "pods:1: want a list of pods {uid, name, namespace, serviceAccount, netns}"},
		{"no_mapping", "- a\n", "pods:1: want a pod {uid, name, namespace, serviceAccount, netns}"},
		{"unknown_key", "- uid: a\n  nome: b\n", `pods:2: unknown key "nome": want a pod {uid`},
		{"wrong_type", "- uid: [a]\n", "pods:1: uid: want a text"},
		{"wrong_type_by_alias", "- name: &a b\n  uid: a\n- {uid: *a, name: &c [d]}\n", "pods:3: name: want a text"},
		{"missing", "- uid: a\n  name: b\n  namespace: c\n  netns: /d\n", "pods:1: pod has no serviceAccount"},
		{"same_uid", goodPods + "- {uid: 1, name: c, namespace: default, serviceAccount: sa, netns: /run/netns/c}\n", `pods:7: uid "1" stands at line 1 already`},
		{"same_netns", goodPods + "- {uid: 3, name: c, namespace: default, serviceAccount: sa, netns: /run/netns/b}\n", `pods:7: netns "/run/netns/b" stands at line 6 already`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := decodePods("pods", []byte(tt.content)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzDecodePods: whatever a list is, it is refused or gives pods that are complete.
func FuzzDecodePods(f *testing.F) {
	f.Add([]byte(goodPods))
	f.Add([]byte("- &a {uid: x}\n- *a\n"))
	f.Add([]byte("- uid: |\n    x\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		list, err := decodePods("pods", content)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.UID == "" || p.Name == "" || p.Namespace == "" || p.ServiceAccount == "" || p.NetNS == "" {
				t.Errorf("incomplete pod %+v", p)
			}
		}
	})
}
