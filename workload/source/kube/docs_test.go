package kube

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// TestDocumentedPolicies: what the documentation shows is understood and in
// force.
func TestDocumentedPolicies(t *testing.T) {
	text, err := os.ReadFile("../../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		for document := range strings.SplitSeq(block[1], "\n---\n") {
			u := new(unstructured.Unstructured)
			if err := yaml.Unmarshal([]byte(document), &u.Object); err != nil {
				t.Fatalf("%v in\n%s", err, document)
			}
			s := defaults()
			switch u.GetKind() {
			case "AuthorizationPolicy":
				if o := translateAuthorization(u, &s); o.fault != "" || len(o.targets) == 0 && o.verdict.Reason != reasonAccepted {
					t.Errorf("%s: %s, %+v", u.GetName(), o.fault, o.verdict)
				}
			case "PeerAuthentication":
				if o := trimPeerAuthentication(u); o.fault != "" {
					t.Errorf("%s: %s", u.GetName(), o.fault)
				}
			default:
				continue
			}
			seen++
		}
	}
	if seen < 5 {
		t.Errorf("%d policies are shown", seen)
	}
}
