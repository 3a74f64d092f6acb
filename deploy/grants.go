package deploy

import (
	"fmt"
	"slices"
	"strings"

	authv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Grants are the permissions that the chart's objects give.
type Grants struct {
	rules    map[string][]rbacv1.PolicyRule // by kind and name of the role
	bindings []Grant
}

// Grant is a binding, of the cluster when it has no namespace; a role has the same form.
type Grant struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Rules             []rbacv1.PolicyRule `json:"rules"`
	Subjects          []rbacv1.Subject    `json:"subjects"`
	RoleRef           rbacv1.RoleRef      `json:"roleRef"`
}

// ReadGrants reads them from manifests, as the chart renders them or Helm keeps them.
func ReadGrants(manifests string) (*Grants, error) {
	g := &Grants{rules: map[string][]rbacv1.PolicyRule{}}
	for text := range documents(manifests) {
		var o Grant
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		switch o.Kind {
		case "ClusterRole", "Role":
			g.rules[o.Kind+" "+o.Name] = o.Rules
		case "ClusterRoleBinding", "RoleBinding":
			g.bindings = append(g.bindings, o)
		}
	}
	return g, nil
}

// Of returns what gives a service account permissions.
func (g *Grants) Of(account string) []Grant {
	return slices.DeleteFunc(slices.Clone(g.bindings), func(b Grant) bool {
		return !slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return s.Kind == rbacv1.ServiceAccountKind && s.Name == account })
	})
}

// Asked returns, once each, what a service account is to be allowed.
func (g *Grants) Asked(account string) []authv1.ResourceAttributes {
	var all []authv1.ResourceAttributes
	add := func(a authv1.ResourceAttributes) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	for _, b := range g.Of(account) {
		for _, rule := range g.rules[b.RoleRef.Kind+" "+b.RoleRef.Name] {
			names := rule.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, group := range rule.APIGroups {
				for _, r := range rule.Resources {
					resource, sub, _ := strings.Cut(r, "/")
					for _, verb := range rule.Verbs {
						for _, name := range names {
							add(authv1.ResourceAttributes{Namespace: b.Namespace, Verb: verb, Group: group, Resource: resource, Subresource: sub, Name: name})
						}
					}
				}
			}
		}
	}
	return all
}
