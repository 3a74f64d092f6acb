package inspect

import (
	"context"
	"slices"
	"strings"
	"sync"

	authv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/deploy"
)

// checkPermissions asks the API server whether the service accounts of agents and controllers may do what the chart lets
// them do, and names the objects that are missing where they may not.
func (c *cluster) checkPermissions(ctx context.Context) {
	text, err := c.manifests()
	if err != nil {
		c.add(Warning, "permissions", "what agents and controllers need is not known: "+err.Error())
		return
	}
	g, err := deploy.ReadGrants(text)
	if err != nil {
		c.add(Warning, "permissions", "what agents and controllers need is not known: "+err.Error())
		return
	}
	for _, account := range []string{deploy.DaemonSet, deploy.Deployment} {
		about := "ServiceAccount " + account
		denied, err := c.denied(ctx, account, g.Asked(account))
		if err != nil {
			c.add(Warning, about, "its permissions could not be asked for: "+c.access.Explain(err).Error())
			continue
		}
		if len(denied) == 0 {
			c.add(OK, about, "has its permissions")
			continue
		}
		because := ""
		if names := c.missing(ctx, g, account); len(names) > 0 {
			because = ", as " + strings.Join(names, " and ") + " is missing"
		}
		if len(denied) > maxTold {
			denied = append(denied[:maxTold], "…")
		}
		c.add(Wrong, about, "lacks permissions"+because+" ("+c.repair()+"): "+strings.Join(denied, ", "))
	}
}

// repair says how the chart's objects are put back.
func (c *cluster) repair() string {
	if c.release != "" {
		return "culvert upgrade puts it back"
	}
	return "apply the manifests again"
}

// manifests returns those of the installed release. Of what was not installed with Helm the values are not known: what all
// values need is taken then.
func (c *cluster) manifests() (string, error) {
	if c.release != "" {
		return c.release, nil
	}
	chart, err := deploy.Chart("v0")
	if err != nil {
		return "", err
	}
	return deploy.Render(chart, c.namespace, map[string]any{
		"netpol": map[string]any{"enforce": false, "companions": false}, "taint": map[string]any{"remove": false},
	})
}

// denied returns what of the asked the account may not do, as "resource (verbs)".
func (c *cluster) denied(ctx context.Context, account string, asked []authv1.ResourceAttributes) ([]string, error) {
	user := "system:serviceaccount:" + c.namespace + ":" + account
	groups := []string{"system:serviceaccounts", "system:serviceaccounts:" + c.namespace, "system:authenticated"}
	allowed, errs := make([]bool, len(asked)), make([]error, len(asked))
	var wg sync.WaitGroup
	places := make(chan struct{}, maxAsked)
	for i := range asked {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			review := &authv1.SubjectAccessReview{Spec: authv1.SubjectAccessReviewSpec{User: user, Groups: groups, ResourceAttributes: &asked[i]}}
			answer, err := c.access.Kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
			if errs[i] = err; err == nil {
				allowed[i] = answer.Status.Allowed
			}
		})
	}
	wg.Wait()
	var order []string
	verbs := map[string][]string{}
	for i, a := range asked {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if allowed[i] {
			continue
		}
		what := a.Resource
		if a.Subresource != "" {
			what += "/" + a.Subresource
		}
		if verbs[what] == nil {
			order = append(order, what)
		}
		if !slices.Contains(verbs[what], a.Verb) {
			verbs[what] = append(verbs[what], a.Verb)
		}
	}
	for i, what := range order {
		order[i] = what + " (" + strings.Join(verbs[what], ", ") + ")"
	}
	return order, nil
}

// missing names those of the chart's objects for an account that are not there, if any.
func (c *cluster) missing(ctx context.Context, g *deploy.Grants, account string) []string {
	rbac := c.access.Kube.RbacV1()
	var names []string
	look := func(kind, name string, err error) {
		if apierrors.IsNotFound(err) {
			names = append(names, kind+" "+name)
		}
	}
	opts := metav1.GetOptions{}
	for _, b := range g.Of(account) {
		if b.Namespace == "" {
			_, err := rbac.ClusterRoleBindings().Get(ctx, b.Name, opts)
			look(b.Kind, b.Name, err)
		} else {
			_, err := rbac.RoleBindings(b.Namespace).Get(ctx, b.Name, opts)
			look(b.Kind, b.Name, err)
		}
		if b.RoleRef.Kind == "ClusterRole" {
			_, err := rbac.ClusterRoles().Get(ctx, b.RoleRef.Name, opts)
			look(b.RoleRef.Kind, b.RoleRef.Name, err)
		} else {
			_, err := rbac.Roles(b.Namespace).Get(ctx, b.RoleRef.Name, opts)
			look(b.RoleRef.Kind, b.RoleRef.Name, err)
		}
	}
	return names
}
