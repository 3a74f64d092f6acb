package inspect_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	authv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/deploy"
)

const (
	nodeUser       = "system:serviceaccount:mesh:culvert-node"
	controllerUser = "system:serviceaccount:mesh:culvert-controller"
)

// roles are the chart's objects that give permissions; without lacks "Kind name".
func roles(without ...string) []runtime.Object {
	var all []runtime.Object
	for _, name := range []string{"culvert-node", "culvert-controller"} {
		cluster, inside := metav1.ObjectMeta{Name: name}, metav1.ObjectMeta{Name: name, Namespace: namespace}
		for kind, o := range map[string]runtime.Object{
			"ClusterRole": &rbacv1.ClusterRole{ObjectMeta: cluster}, "ClusterRoleBinding": &rbacv1.ClusterRoleBinding{ObjectMeta: cluster},
			"Role": &rbacv1.Role{ObjectMeta: inside}, "RoleBinding": &rbacv1.RoleBinding{ObjectMeta: inside},
		} {
			if !slices.Contains(without, kind+" "+name) {
				all = append(all, o)
			}
		}
	}
	return all
}

// findings about service accounts, "level about: text" each.
func permissions(t *testing.T, a *access.Access, release string) string {
	t.Helper()
	var b strings.Builder
	for _, f := range inspect.Cluster(t.Context(), a, &agents{}, namespace, release) {
		if strings.HasPrefix(f.About, "ServiceAccount ") || f.About == "permissions" {
			b.WriteString(string(f.Level) + " " + f.About + ": " + f.Text + "\n")
		}
	}
	return b.String()
}

// Who lacks permissions is told which, for want of which object, and how to get it back.
func TestPermissions(t *testing.T) {
	fine := func(account string) string { return "ok ServiceAccount " + account + ": has its permissions\n" }
	tests := []struct {
		name    string
		objects []runtime.Object
		allowed func(authv1.SubjectAccessReviewSpec) bool
		want    string
	}{
		{"good", roles(), func(authv1.SubjectAccessReviewSpec) bool { return true }, fine("culvert-node") + fine("culvert-controller")},
		{
			"agents-without-binding", roles("ClusterRoleBinding culvert-node"),
			func(s authv1.SubjectAccessReviewSpec) bool {
				return s.User != nodeUser || s.ResourceAttributes.Namespace != ""
			},
			"error ServiceAccount culvert-node: lacks permissions, as ClusterRoleBinding culvert-node is missing (apply the manifests again): " +
				"pods (get, list, watch), namespaces (get, list, watch), pods/status (patch), events (create), nodes (list, watch)\n" + fine("culvert-controller"),
		},
		{
			"controllers-without-role", roles("Role culvert-controller"),
			func(s authv1.SubjectAccessReviewSpec) bool {
				return s.User != controllerUser || s.ResourceAttributes.Namespace == ""
			},
			fine("culvert-node") + "error ServiceAccount culvert-controller: lacks permissions, as Role culvert-controller is missing (apply the manifests again): " +
				"secrets (create, get, update), configmaps (create, get, update), leases (create, get, update)\n",
		},
		{
			"role-was-changed", roles(),
			func(s authv1.SubjectAccessReviewSpec) bool {
				return s.User != nodeUser || s.ResourceAttributes.Subresource != "status"
			},
			"error ServiceAccount culvert-node: lacks permissions (apply the manifests again): pods/status (patch)\n" + fine("culvert-controller"),
		},
		{
			"nothing-is-there", nil, func(authv1.SubjectAccessReviewSpec) bool { return false },
			"error ServiceAccount culvert-node: lacks permissions, as ClusterRoleBinding culvert-node and ClusterRole culvert-node and " +
				"RoleBinding culvert-node and Role culvert-node is missing (apply the manifests again): " +
				"pods (get, list, watch), namespaces (get, list, watch), pods/status (patch), events (create), nodes (list, watch), …\n" +
				"error ServiceAccount culvert-controller: lacks permissions, as ClusterRoleBinding culvert-controller and ClusterRole culvert-controller and " +
				"RoleBinding culvert-controller and Role culvert-controller is missing (apply the manifests again): " +
				"pods (list, watch), services (list, watch), nodes (list, watch), namespaces (list, watch), endpointslices (list, watch), …\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects := append(workloads("culvert:v1", 2), tt.objects...)
			if got := permissions(t, connectAs("v1.36.3", tt.allowed, objects...), ""); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

// What is asked for is what the installed release gives, with its values, to the accounts of its namespace.
func TestPermissionsOfRelease(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]bool{}
	a := connectAs("v1.36.3", func(s authv1.SubjectAccessReviewSpec) bool {
		mu.Lock()
		defer mu.Unlock()
		r := s.ResourceAttributes
		asked[s.User+" "+r.Verb+" "+r.Group+" "+r.Resource+" "+r.Subresource+" "+r.Namespace+" "+r.Name] = true
		if !slices.Equal(s.Groups, []string{"system:serviceaccounts", "system:serviceaccounts:mesh", "system:authenticated"}) {
			t.Errorf("groups %v", s.Groups)
		}
		return r.Resource != "networkpolicies"
	}, append(workloads("culvert:v1", 2), roles()...)...)
	chart, err := deploy.Chart("v1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := deploy.Render(chart, namespace, map[string]any{"netpol": map[string]any{"companions": true}, "taint": map[string]any{"remove": false}})
	if err != nil {
		t.Fatal(err)
	}
	want := "ok ServiceAccount culvert-node: has its permissions\n" +
		"error ServiceAccount culvert-controller: lacks permissions (culvert upgrade puts it back): networkpolicies (list, watch, get, create, update, delete)\n"
	if got := permissions(t, a, text); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for key, want := range map[string]bool{
		nodeUser + " get apps daemonsets  mesh culvert-node":            true,
		nodeUser + " patch  pods status  ":                              true,
		controllerUser + " get  secrets  mesh culvert-ca":               true,
		controllerUser + " update networking.k8s.io networkpolicies   ": true,
		controllerUser + " patch  nodes   ":                             false, // taint.remove
	} {
		if asked[key] != want {
			t.Errorf("asked for %q: %v", key, asked[key])
		}
	}
}

func TestPermissionsCannotBeAsked(t *testing.T) {
	a := connect("v1.36.3", workloads("culvert:v1", 2)...)
	a.Kube.(*fake.Clientset).PrependReactor("create", "subjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("not for you")
	})
	if got := permissions(t, a, ""); !strings.Contains(got, "warning ServiceAccount culvert-node: its permissions could not be asked for: not for you") || strings.Contains(got, "error") {
		t.Errorf("got %s", got)
	}
}
