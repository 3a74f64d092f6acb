package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/identity"
)

// Whatever is wrong in the cluster or on a node gets a clear error, and nobody else suffers: connections and requests of two
// bystanders, of which the server takes no plaintext, go on through all of it.
//
// Tested elsewhere, with the real thing each time: an agent that asks for pods of another node, without a pod or with a token
// for another audience (TestNodeAuthorizer); requests for other identities, other trust domains or a CA's certificate
// (identity/ca/authority TestIssueIgnoresWishes and TestParseRequestRefuses, identity/ca/server TestRefusals); clocks that are
// wrong by minutes (identity/ca/authority TestIssue: certificates begin in the past; identity/svid TestVerify: an issuer's
// clock that is ahead; identity/mtls TestHandshake: what a peer is told); a full disk, and one that may not be written
// (redirect/cni/install TestDisk); every other fault of a CNI configuration (redirect/cni/install TestWaits).
func TestBadInput(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	ns.strict()
	b := bystanders{mesh: m, client: ns.pod("client", onNode(n1)), server: ns.pod("server", onNode(n2))}
	b.client.ready().enrolled()
	b.server.ready().enrolled()
	b.client.reach("http://" + b.server.ip + ":8080/")
	held := b.client.hold(4, b.server.ip+":9000")
	load := b.client.start("load", "--pause=20ms", "http://"+b.server.ip+":8080/")

	t.Run("objects-that-contradict", b.contradictions)
	t.Run("addresses-twice", b.addressesTwice)
	t.Run("names-out-of-range", b.names)
	t.Run("pod-that-changes-its-address", b.changedAddress)
	t.Run("address-of-another-pod-within-a-second", b.reusedAddress)
	t.Run("namespace-deleted-while-enrolling", b.deletedNamespace)
	t.Run("token-that-has-expired", b.expiredToken)
	t.Run("configuration-that-is-not-json", b.brokenConfiguration)

	t.Logf("held: %+v", held.unbroken())
	t.Logf("requests: %d", load.faultless().Requests)
}

// bystanders have nothing to do with what goes wrong.
type bystanders struct {
	mesh           *installation
	client, server *app
}

// wellOff wants new connections of the bystanders to be proven still.
func (b *bystanders) wellOff(t *testing.T) {
	t.Helper()
	wantTLS(t, b.client.of(t), b.server.of(t))
}

// of is the pod for another test, a part of the one that made it.
func (a *app) of(t *testing.T) *app {
	c := *a
	c.space = &space{t: t, name: a.space.name}
	return &c
}

// Objects that say two things of one: each is told, and the one that was there first counts.
func (b *bystanders) contradictions(t *testing.T) {
	ns := namespace(t, modeLabel+"=ambient")
	begin := since()
	ns.apply(entryManifest("first", "twice.example.com", "192.0.2.10"))
	time.Sleep(1100 * time.Millisecond) // objects' ages are whole seconds
	ns.apply(entryManifest("second", "twice.example.com", "192.0.2.11"))
	b.mesh.wantLog(t, "culvert-controller", begin, ns.name, `"second"`, "belong to an older object of the namespace")

	both := ns.run("both", withAnnotation("traffic.sidecar.istio.io/includeInboundPorts", "8080"), withAnnotation("traffic.sidecar.istio.io/excludeInboundPorts", "9000"))
	both.enrolled()
	both.wantEvent("excludeInboundPorts is ignored: traffic.sidecar.istio.io/includeInboundPorts says what is captured")
	b.wellOff(t)
}

func entryManifest(name, host, address string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s}
spec:
  hosts: [%s]
  addresses: [%q]
  ports: [{number: 8080, name: http, protocol: HTTP}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.1}]
`, name, host, address)
}

// Somebody else's objects that claim addresses of pods and services get none of their traffic.
func (b *bystanders) addressesTwice(t *testing.T) {
	ns := namespace(t)
	service := b.server.of(t).service("server", nil)
	begin := since()
	ns.apply(entryManifest("pod", "thief.example.com", b.server.ip))
	ns.apply(entryManifest("service", "robber.example.com", service.Spec.ClusterIP))
	ns.apply(fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: machine}
spec: {address: %s, serviceAccount: thief}
`, b.server.ip))
	for _, address := range []string{b.server.ip, service.Spec.ClusterIP} {
		b.mesh.wantLog(t, "culvert-controller", begin, ns.name, "1 of its addresses, such as "+address+", belong to a Service or a pod")
	}
	b.wellOff(t)
	b.client.of(t).reach("http://" + service.Spec.ClusterIP + "/")
}

// Names as long as Kubernetes takes them work, and numbers that are none are named.
func (b *bystanders) names(t *testing.T) {
	ns := namespace(t, modeLabel+"=ambient")
	name := strings.Repeat("l", 63) + "." + strings.Repeat("o", 63) + ".ng"
	long := ns.pod(name, onNode(b.client.node), withLabel("app", "long"), withAnnotation("traffic.sidecar.istio.io/excludeInboundPorts", "0,70000,http"),
		withAnnotation("culvert.io/allow-host-ports", "-1"))
	long.ready().enrolled()
	long.wantEvent("annotation traffic.sidecar.istio.io/excludeInboundPorts is ignored")
	long.wantEvent("annotation culvert.io/allow-host-ports")
	wantTLS(t, long, b.server.of(t))
	b.wellOff(t)
}

// A pod whose sandbox dies gets another one with another address, under the same UID.
func (b *bystanders) changedAddress(t *testing.T) {
	needNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	pod := ns.run("mover", onNode(b.server.node)).enrolled()
	old := *pod
	killSandbox(t, pod.uid)
	wait(t, "the pod has another address", func() error {
		p, err := pod.get()
		if err == nil && (p.Status.PodIP == old.ip || !ready(p)) {
			err = fmt.Errorf("it has %s, ready: %v: %s", p.Status.PodIP, ready(p), pod.events())
		}
		return err
	})
	if pod.ready().uid != old.uid {
		t.Fatalf("another pod has the name: %s, not %s", pod.uid, old.uid)
	}
	pod.enrolled()
	wantTLS(t, b.client.of(t), pod)
	if !pod.captured() {
		t.Error("the new sandbox has no rules")
	}
	b.wellOff(t)
}

// killSandbox ends the process that holds the pod's namespaces.
func killSandbox(t *testing.T, uid string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !contains(string(text), "pod"+uid) {
			continue
		}
		name, err := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		if err != nil || strings.TrimSpace(string(name)) != "pause" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		process, err := os.FindProcess(pid)
		if err == nil {
			err = process.Kill()
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("pod %s has no sandbox", uid)
}

// A pod's address goes to a pod of somebody else as soon as it is free: peers get that one's certificate or nothing.
func (b *bystanders) reusedAddress(t *testing.T) {
	node := needNodes(t).Node(b.server.node)
	mine, theirs := namespace(t, modeLabel+"=ambient"), namespace(t, modeLabel+"=ambient")
	first := mine.run("first", onNode(b.server.node)).enrolled()
	wantTLS(t, b.client.of(t), first)
	given := filepath.Join(fmt.Sprintf("/proc/%d/root", node.PID()), "run/cni-ipam/testnet")
	soon := int64(1) // zero would leave the sandbox to be found later
	if err := shared.client.CoreV1().Pods(mine.name).Delete(t.Context(), first.name, metav1.DeleteOptions{GracePeriodSeconds: &soon}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the address is free", func() error {
		if _, err := os.Stat(filepath.Join(given, first.ip)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("it is not: %w", err)
		}
		return nil
	})
	free := time.Now()
	// The next pod of the node is given what comes after the last address.
	last := netip.MustParseAddr(first.ip).Prev()
	if err := os.WriteFile(filepath.Join(given, "last_reserved_ip.0"), []byte(last.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	second := theirs.pod("second", onNode(b.server.node))
	wait(t, "the address is given away", func() error {
		_, err := os.Stat(filepath.Join(given, first.ip))
		return err
	})
	t.Logf("the address was free for %v", time.Since(free).Round(time.Millisecond))
	second.ready().enrolled()
	if second.ip != first.ip {
		t.Fatalf("the second pod has %s, not %s: nothing is shown", second.ip, first.ip)
	}
	// The node's bridge sends to the first pod's interface for half a minute more, mesh or not: that is not what is tested.
	if out, err := node.Command(t.Context(), "ip", "neigh", "flush", "to", second.ip).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantTLS(t, b.client.of(t), second)
	if !second.captured() {
		t.Error("the second pod has no rules: the end of the first took them")
	}
	b.wellOff(t)
}

// A namespace goes while its pods come into the mesh: others are enrolled as ever.
func (b *bystanders) deletedNamespace(t *testing.T) {
	doomed := namespace(t)
	var pods []*app
	for i := range 6 {
		pods = append(pods, doomed.pod(fmt.Sprintf("pod%d", i), onNode([]string{b.client.node, b.server.node}[i%2])))
	}
	for _, p := range pods {
		p.ready()
	}
	doomed.enrol()
	if err := shared.client.CoreV1().Namespaces().Delete(t.Context(), doomed.name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	spared := namespace(t, modeLabel+"=ambient").run("spared", onNode(b.client.node)).enrolled()
	wantTLS(t, spared, b.server.of(t))
	wait(t, "the namespace is gone", func() error {
		_, err := shared.client.CoreV1().Namespaces().Get(t.Context(), doomed.name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return cmpOr(err, errors.New("it is there"))
	})
	for _, p := range pods {
		if pid, err := processOf(p.uid); err == nil {
			t.Errorf("process %d of pod %s runs on", pid, p.name)
		}
	}
	out, err := b.mesh.culvert(t.Context(), "check")
	if err != nil || contains(out, doomed.name) {
		t.Errorf("culvert check: %v\n%s", err, out)
	}
	b.wellOff(t)
}

// A token that was good is of no use once its time is over.
func (b *bystanders) expiredToken(t *testing.T) {
	needNodes(t)
	agent, err := b.mesh.agent(t.Context(), b.client.node)
	if err != nil {
		t.Fatal(err)
	}
	good := token(t, system, "culvert-node", agent.Name, "istio-ca")
	id, err := identity.Parse(b.client.identity())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.mesh.authority(t, resign(t, good, func(map[string]any) {})).Fetch(t.Context(), id); err != nil {
		t.Fatalf("a token that was signed again is refused: %v: nothing is shown", err)
	}
	begin := since()
	hour := float64(time.Now().Add(-time.Hour).Unix())
	old := resign(t, good, func(claims map[string]any) { claims["iat"], claims["nbf"], claims["exp"] = hour-600, hour-600, hour })
	if _, err := b.mesh.authority(t, old).Fetch(t.Context(), id); err == nil {
		t.Error("a certificate was issued for a token of an hour ago")
	}
	b.mesh.wantLog(t, "culvert-controller", begin, "certificate refused", "expired")
	b.wellOff(t)
}

// resign changes the claims of a token and signs it with the cluster's own key, so that nothing else is wrong with it.
func resign(t *testing.T, token string, change func(claims map[string]any)) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("token of %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	change(claims)
	if payload, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(shared.dir, "pki", "sa.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("the key of service accounts is not PEM")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// A configuration of the node's network that is not JSON is named by the agent, and left as it is. When it is mended, the
// plugin is in it again.
func (b *bystanders) brokenConfiguration(t *testing.T) {
	node := needNodes(t).Node(b.server.node)
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/etc/cni/net.d/*.conflist", node.PID()))
	if err != nil || len(files) != 1 {
		t.Fatalf("configurations on %s: %v %v", node.Name(), files, err)
	}
	good, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if !contains(string(good), "culvert-cni") {
		t.Fatalf("the plugin is not in the configuration: %s", good)
	}
	const broken = "{\n \"name\": oops"
	begin := since()
	if err := os.WriteFile(files[0], []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	mend := func() error { return os.WriteFile(files[0], good, 0o600) }
	t.Cleanup(func() {
		if t.Failed() {
			_ = mend()
		}
	})
	b.mesh.wantLog(t, "culvert-node", begin, "CNI plugin is not installed", filepath.Base(files[0])+" is not valid: line 2, column 10: invalid character 'o'")
	if now, err := os.ReadFile(files[0]); err != nil || string(now) != broken {
		t.Errorf("somebody changed it: %q %v", now, err)
	}
	b.wellOff(t)
	// Whoever writes it anew knows nothing of the plugin.
	var list map[string]any
	if err := json.Unmarshal(good, &list); err != nil {
		t.Fatal(err)
	}
	plugins, _ := list["plugins"].([]any)
	list["plugins"] = plugins[:len(plugins)-1]
	if good, err = json.Marshal(list); err == nil {
		err = mend()
	}
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "the plugin is in the configuration again", func() error {
		now, err := os.ReadFile(files[0])
		if err == nil && !contains(string(now), "culvert-cni") {
			err = fmt.Errorf("it is %s", now)
		}
		return err
	})
	fresh := namespace(t, modeLabel+"=ambient").run("fresh", onNode(b.server.node)).enrolled()
	wantTLS(t, b.client.of(t), fresh)
}

// wantLog waits for a line with all of these parts in the logs of one of Culvert's programs.
func (m *installation) wantLog(t *testing.T, program string, since time.Time, parts ...string) {
	t.Helper()
	wait(t, fmt.Sprintf("%s logs %q", program, parts), func() error {
		text, err := m.log(t.Context(), program, since)
		if err != nil {
			return err
		}
		for line := range strings.Lines(text) {
			all := true
			for _, part := range parts {
				all = all && contains(line, part)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("it does not: %s", text[max(0, len(text)-2000):])
	})
}

// log is what all pods of a program have logged since a time, without the access log.
func (m *installation) log(ctx context.Context, program string, since time.Time) (string, error) {
	list, err := m.env.client.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app=" + program})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	from := metav1.NewTime(since)
	for _, p := range list.Items {
		text, err := m.env.client.CoreV1().Pods(system).GetLogs(p.Name, &corev1.PodLogOptions{SinceTime: &from}).DoRaw(ctx)
		if err != nil {
			return "", err
		}
		b.WriteString(withoutAccess(text))
	}
	return b.String(), nil
}

// wantEvent waits for an event of the pod with this text.
func (a *app) wantEvent(text string) {
	a.t.Helper()
	wait(a.t, fmt.Sprintf("an event of pod %s says %q", a.name, text), func() error {
		if all := events(a.t.Context(), shared, a.space.name); !contains(all, text) {
			return fmt.Errorf("events: %s", all)
		}
		return nil
	})
}
