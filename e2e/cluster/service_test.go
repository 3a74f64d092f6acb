package cluster

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// Every kind of service works from inside of the mesh, in tunnels: the pods take no plaintext.
func TestServicesOfEveryKind(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	behind := func(name, node string, shapes ...shape) *app {
		return ns.pod(name, append(shapes, onNode(node), withLabel("app", "web"))...)
	}
	client := ns.pod("client", onNode(n1))
	a, b := behind("web-a", n1), behind("web-b", n2)
	for _, p := range []*app{client, a, b} {
		p.ready().enrolled()
	}
	web := func(change func(*corev1.Service)) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.Selector = map[string]string{"app": "web"}
			if change != nil {
				change(s)
			}
		}
	}
	kinds := []struct {
		name  string
		setup func(t *testing.T)
	}{
		{"ClusterIP", func(t *testing.T) {
			ns.service("plain", web(nil))
			client.wantPods(t, "http://plain/", "web-a", "web-b")
		}},
		{"headless", func(t *testing.T) {
			ns.service("headless", web(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }))
			client.wantPods(t, "http://headless:8080/", "web-a", "web-b")
		}},
		{"dual-stack", func(t *testing.T) {
			s := ns.service("dual", web(func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack) }))
			for _, ip := range s.Spec.ClusterIPs {
				client.wantPods(t, "http://"+bracket(ip)+"/", "web-a", "web-b")
			}
			if len(s.Spec.ClusterIPs) < 2 && shared.nodes != nil {
				t.Errorf("one address only: %v", s.Spec.ClusterIPs)
			}
		}},
		{"ExternalName", func(t *testing.T) {
			ns.service("target", web(nil))
			ns.service("external", func(s *corev1.Service) {
				s.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "target." + ns.name + ".svc.cluster.local"}
			})
			client.wantPods(t, "http://external/", "web-a", "web-b")
		}},
		{"session-affinity", func(t *testing.T) {
			ns.service("sticky", web(func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }))
			client.reach("http://sticky/")
			if seen := client.answers(t, "http://sticky/", 20); len(seen) != 1 {
				t.Errorf("20 requests of one client were answered by %v", seen)
			}
		}},
		{"traffic-distribution", func(t *testing.T) {
			ns.service("near", web(func(s *corev1.Service) {
				s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode)
			}))
			client.reach("http://near/")
			if seen := client.answers(t, "http://near/", 20); len(seen) != 1 || seen["web-a"] == 0 {
				t.Errorf("20 requests were answered by %v, not by the pod of the same node", seen)
			}
		}},
	}
	for _, k := range kinds {
		t.Run(k.name, k.setup)
	}
	t.Run("named-ports", func(t *testing.T) { namedPorts(t, ns, client, n1, n2) })
	t.Run("not-ready", func(t *testing.T) { notReady(t, ns, client, n2) })
	t.Run("NodePort", func(t *testing.T) { nodePort(t, n1, n2) })
}

func bracket(ip string) string {
	if contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// answers counts who answered n requests, each on a connection of its own. All must succeed.
func (a *app) answers(t *testing.T, url string, n int) map[string]int {
	t.Helper()
	var all []response
	if err := a.exec(&all, "get", fmt.Sprintf("--count=%d", n), url); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]int)
	for _, r := range all {
		if r.Status != http.StatusOK {
			t.Fatalf("%s: status %d %s", url, r.Status, r.Error)
		}
		seen[r.Body.Pod]++
	}
	return seen
}

// wantPods wants each of the pods to answer sometimes, and nobody else.
func (a *app) wantPods(t *testing.T, url string, pods ...string) {
	t.Helper()
	a.reach(url)
	wait(t, fmt.Sprintf("%s is answered by %v", url, pods), func() error {
		seen := a.answers(t, url, 20)
		for _, p := range pods {
			if seen[p] == 0 {
				return fmt.Errorf("it is answered by %v", seen)
			}
		}
		if len(seen) != len(pods) {
			return fmt.Errorf("it is answered by %v", seen)
		}
		return nil
	})
}

// namedPorts has one name stand for different numbers in different pods.
func namedPorts(t *testing.T, ns *space, client *app, n1, n2 string) {
	named := func(port int32) shape {
		return func(p *corev1.Pod) {
			p.Labels["app"] = "named"
			p.Spec.Containers[0].Args = []string{"serve", fmt.Sprintf("--http=:%d", port)}
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: port}}
		}
	}
	a, b := ns.pod("named-a", onNode(n1), named(8080)), ns.pod("named-b", onNode(n2), named(8088))
	a.ready().enrolled()
	b.ready().enrolled()
	ns.service("named", func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}}
	})
	client.wantPods(t, "http://named/", "named-a", "named-b")
}

// notReady has a service that publishes pods that are not ready, beside one that does not.
func notReady(t *testing.T, ns *space, client *app, node string) {
	never := ns.pod("never", onNode(node), func(p *corev1.Pod) {
		p.Spec.Containers[0].Args = []string{"serve", "--ready-after=1h"}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: portNumber(8080)}}}
	})
	never.enrolled()
	ns.service("shy", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "never"} })
	ns.service("bold", func(s *corev1.Service) {
		s.Spec.Selector = map[string]string{"app": "never"}
		s.Spec.PublishNotReadyAddresses = true
	})
	client.wantPods(t, "http://bold/", "never")
	client.refused("http://shy/")
}

// nodePort comes from outside of the cluster, in plaintext, to pods of the mesh that take it.
func nodePort(t *testing.T, n1, n2 string) {
	nodes := needNodes(t)
	_ = nodes
	ns := namespace(t, modeLabel+"=ambient")
	ns.run("server", onNode(n2)).enrolled()
	s := ns.service("server", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, addr := range []string{"198.18.250.1", "198.18.250.2"} {
		url := fmt.Sprintf("http://%s:%d/", addr, s.Spec.Ports[0].NodePort)
		wait(t, url+" answers", func() error {
			resp, err := client.Get(url)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			_, err = io.Copy(io.Discard, resp.Body)
			if err == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
			return err
		})
	}
	_ = n1
}
