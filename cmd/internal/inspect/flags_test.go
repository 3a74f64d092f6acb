package inspect_test

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/deploy"
)

func TestAgentFlags(t *testing.T) {
	set := func(name string, args ...string) appsv1.DaemonSet {
		s := appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		s.Spec.Template.Spec.Containers = []corev1.Container{{Args: args}}
		return s
	}
	f := inspect.AgentFlags([]appsv1.DaemonSet{set("other", "--dns=false"), set(deploy.DaemonSet)}, namespace)
	if !f.DNS || f.Enrolment.Exclude != nil || f.Enrolment.Selectors != nil || f.Enrolment.OwnNamespace != namespace {
		t.Errorf("without flags they are %+v", f)
	}
	f = inspect.AgentFlags([]appsv1.DaemonSet{set(deploy.DaemonSet, "--exclude-namespaces=a,b", "--dns=false", "--forbid-carve-outs", "--enrol-selectors=mesh=in;|;team=a")}, namespace)
	if f.DNS || !slices.Equal(f.Enrolment.Exclude, []string{"a", "b"}) || !f.Enrolment.ForbidCarveOuts || len(f.Enrolment.Selectors) != 2 {
		t.Errorf("with flags they are %+v", f)
	}
	if f = inspect.AgentFlags([]appsv1.DaemonSet{set(deploy.DaemonSet, "--enrol-selectors=a b")}, namespace); f.Enrolment.Selectors != nil {
		t.Errorf("selectors that nobody can read are %v", f.Enrolment.Selectors)
	}
}
