package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const system = "culvert-system"

// installation is Culvert in the cluster, as the user's command puts it there. Tests run one after the other.
type installation struct {
	env  *environment
	here bool
}

// mesh makes sure that Culvert is installed and ready.
func mesh(t *testing.T) *installation {
	t.Helper()
	m := &shared.mesh
	if !m.here {
		begin := time.Now()
		if err := m.install(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("installed in %v", time.Since(begin).Round(time.Second))
	}
	return m
}

// noMesh makes sure that Culvert is not installed. To install and uninstall takes a quarter of a minute: tests that begin or
// end without Culvert stand beside each other in the order of files.
func noMesh(t *testing.T) {
	t.Helper()
	if !shared.mesh.here {
		return
	}
	if err := shared.mesh.uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (m *installation) install(ctx context.Context, flags ...string) error {
	m.here = true // also half of it has to be removed
	args := []string{"install", "--set=image.tag=" + meshTag, "--set=image.pullPolicy=Never", "--set=logFormat=json", "--keep-failed", "--timeout=3m"}
	if out, err := m.culvert(ctx, append(args, flags...)...); err != nil {
		return fmt.Errorf("install: %w\n%s\n%s", err, out, m.report(ctx))
	}
	return nil
}

// ownMesh installs Culvert with flags, for this test alone.
func ownMesh(t *testing.T, flags ...string) *installation {
	t.Helper()
	m := &shared.mesh
	t.Cleanup(func() {
		if err := m.uninstall(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := m.install(t.Context(), flags...); err != nil {
		t.Fatal(err)
	}
	return m
}

// change upgrades Culvert with a value, and with another one when the test ends.
func (m *installation) change(t *testing.T, value, after string) {
	t.Helper()
	upgrade := func(value string) error {
		ctx := context.WithoutCancel(t.Context())
		if out, err := m.culvert(ctx, "upgrade", "--set="+value, "--timeout=3m"); err != nil {
			return fmt.Errorf("upgrade with %s: %w\n%s\n%s", value, err, out, m.report(ctx))
		}
		return m.alone(ctx)
	}
	t.Cleanup(func() {
		if err := upgrade(after); err != nil {
			t.Error(err)
		}
	})
	if err := upgrade(value); err != nil {
		t.Fatal(err)
	}
}

// alone waits until no agent of before is left beside those that took over from it.
func (m *installation) alone(ctx context.Context) error {
	return eventually(ctx, "the old agents are gone", func() error {
		list, err := m.env.client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app=culvert-node"})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.DeletionTimestamp != nil {
				return fmt.Errorf("%s is there", p.Name)
			}
		}
		return nil
	})
}

// uninstall removes Culvert, if it is there, as the user's command does: the namespace stays.
func (m *installation) uninstall(ctx context.Context) error {
	if out, err := m.culvert(ctx, "uninstall"); err != nil && !strings.Contains(out, "not installed") {
		return fmt.Errorf("uninstall: %w\n%s", err, out)
	}
	m.here = false
	return nil
}

// remove uninstalls Culvert, if it is there, and removes its namespace, which takes a cluster five seconds even when it is empty.
func (m *installation) remove(ctx context.Context) error {
	_, err := m.env.client.CoreV1().Namespaces().Get(ctx, system, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		m.here = false
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.uninstall(ctx); err != nil {
		return err
	}
	err = m.env.client.CoreV1().Namespaces().Delete(ctx, system, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return eventually(ctx, "namespace "+system+" is gone", func() error {
		_, err := m.env.client.CoreV1().Namespaces().Get(ctx, system, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return cmpOr(err, errors.New("it is still there"))
	})
}

// culvert runs the user's command and returns all that it printed.
func (m *installation) culvert(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, m.env.program("culvert"), args...)
	cmd.Env = m.env.clientEnv()
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// agent is the agent's pod of a node.
func (m *installation) agent(ctx context.Context, node string) (corev1.Pod, error) {
	list, err := m.env.client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app=culvert-node", FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return corev1.Pod{}, err
	}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && ready(&p) {
			return p, nil
		}
	}
	return corev1.Pod{}, fmt.Errorf("no ready agent among %d on %s", len(list.Items), node)
}

// record is one line of the access log.
type record map[string]any

func (r record) str(key string) string {
	if v, ok := r[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// accessLog are the access-log lines of the agent on a node since a time.
func (m *installation) accessLog(ctx context.Context, node string, since time.Time) ([]record, error) {
	agent, err := m.agent(ctx, node)
	if err != nil {
		return nil, err
	}
	from := metav1.NewTime(since)
	text, err := m.env.client.CoreV1().Pods(system).GetLogs(agent.Name, &corev1.PodLogOptions{SinceTime: &from}).DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var records []record
	for line := range bytes.Lines(text) {
		var r record
		if json.Unmarshal(line, &r) == nil && r.str("scope") == "access" {
			records = append(records, r)
		}
	}
	return records, nil
}

// wantRecord waits for an inbound access-log line of the server's node with these values.
func (m *installation) wantRecord(t *testing.T, node string, since time.Time, want map[string]string) record {
	t.Helper()
	var found record
	wait(t, fmt.Sprintf("agent on %s logs a connection with %v", node, want), func() error {
		records, err := m.accessLog(t.Context(), node, since)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(records, func(r record) bool {
			for k, v := range want {
				if r.str(k) != v {
					return false
				}
			}
			return true
		})
		if i < 0 {
			return fmt.Errorf("none among %d lines: %v", len(records), records[max(0, len(records)-6):])
		}
		found = records[i]
		return nil
	})
	return found
}

// report is what an engineer needs when the installation misbehaves.
func (m *installation) report(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var b strings.Builder
	pods, err := m.env.client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for _, p := range pods.Items {
		fmt.Fprintf(&b, "--- %s on %s: %s, ready %v\n", p.Name, p.Spec.NodeName, p.Status.Phase, ready(&p))
		for _, previous := range []bool{true, false} {
			text, err := m.env.client.CoreV1().Pods(system).GetLogs(p.Name, &corev1.PodLogOptions{Previous: previous}).DoRaw(ctx)
			if err == nil && len(text) > 0 {
				lines := strings.SplitAfter(withoutAccess(text), "\n")
				fmt.Fprintf(&b, "log (of the one before: %v):\n%s", previous, strings.Join(lines[max(0, len(lines)-80):], ""))
			} else if err != nil && !previous {
				fmt.Fprintf(&b, "%v\n", err)
			}
		}
	}
	b.WriteString(events(ctx, m.env, system))
	return b.String()
}

// withoutAccess leaves out the access log, but for what failed.
func withoutAccess(text []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, `"scope":"access"`) || strings.Contains(line, `"error"`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func events(ctx context.Context, e *environment, namespace string) string {
	list, err := e.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{Limit: 200})
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, event := range list.Items {
		if event.Type != corev1.EventTypeNormal {
			fmt.Fprintf(&b, "event %s/%s %s: %s\n", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Reason, event.Message)
		}
	}
	return b.String()
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
