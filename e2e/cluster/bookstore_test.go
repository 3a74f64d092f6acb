package cluster

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The sample application in a mesh without plaintext: its page shows every version of the reviews, and bookinfo's
// identities govern who may ask whom.
func TestBookstore(t *testing.T) {
	mesh(t)
	manifests, err := os.ReadFile("../../deploy/samples/bookstore/bookstore.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	ns.apply(strings.ReplaceAll(string(manifests), "culvert-bookstore:v1", bookstoreImage))
	client := ns.run("browser").enrolled()
	wait(t, "all deployments are available", func() error {
		list, err := shared.client.AppsV1().Deployments(ns.name).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, d := range list.Items {
			if d.Status.AvailableReplicas != 1 {
				return fmt.Errorf("%s has %d", d.Name, d.Status.AvailableReplicas)
			}
		}
		if len(list.Items) != 6 {
			return fmt.Errorf("there are %d", len(list.Items))
		}
		return nil
	})

	seen := make(map[string]bool)
	wait(t, "the page shows three versions of the reviews", func() error {
		text, err := client.page()
		if err != nil {
			return err
		}
		for _, part := range []string{"<title>Simple Bookstore App</title>", "William Shakespeare", "ISBN-13", "Reviewer2"} {
			if !strings.Contains(text, part) {
				return fmt.Errorf("%q is missing on the page:\n%s", part, text)
			}
		}
		seen[starsOf(text)] = true
		if !seen["none"] || !seen["black"] || !seen["red"] {
			return fmt.Errorf("so far: %v", seen)
		}
		return nil
	})

	// As bookinfo's own documentation has it: only reviews may ask ratings.
	ns.apply(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings-viewer}
spec:
  selector: {matchLabels: {app: ratings}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/%s/sa/bookinfo-reviews"]}}]}]
`, ns.name))
	client.refused("http://ratings:9080/ratings/0")
	delete(seen, "black")
	wait(t, "reviews still have ratings", func() error {
		text, err := client.page()
		if err != nil {
			return err
		}
		if seen[starsOf(text)] = true; !seen["black"] {
			return fmt.Errorf("so far: %v", seen)
		}
		return nil
	})
}

// page is the product page as a browser in the pod gets it.
func (a *app) page() (string, error) {
	r, err := a.get1("http://productpage:9080/productpage")
	if err == nil && r.Status != 200 {
		err = fmt.Errorf("status %d %s", r.Status, r.Error)
	}
	return r.Text, err
}

// starsOf is the colour of the stars on the page, or why there are none.
func starsOf(page string) string {
	if strings.Contains(page, "currently unavailable") {
		return "unavailable"
	}
	match := regexp.MustCompile(`data-color="(\w+)"`).FindStringSubmatch(page)
	if match == nil {
		return "none"
	}
	return match[1]
}
