package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/e2e/cluster/truth"
)

const (
	truthRounds   = 20 // of each way on one node
	truthPolicies = 6  // at most, in one round
)

// truthApp is a pod of the world of which connections are judged.
type truthApp struct {
	*app
	enrolled bool
	prober   *prober
}

// TestNetworkPolicyTruthTables compares what real connections meet with what an oracle says that nobody here wrote. The
// network of the cluster enforces nothing: what is refused is refused by the agents. A pod that is not in the mesh enforces
// nothing either, so only the other end's policies count for it.
func TestNetworkPolicyTruthTables(t *testing.T) {
	m := mesh(t)
	world, apps := truthWorld(t)
	var sum truthSum
	rounds := func(t *testing.T) { sum.rounds(t, world, apps) }
	t.Run("tunnel-on-one-node", rounds)
	m.change(t, "agent.sameNode=short", "agent.sameNode=encrypt")
	t.Run("short-on-one-node", rounds)
	fmt.Printf("netpol: %d cases, %d mismatches\n", sum.cases, sum.mismatches)
	t.Logf("%v, %d of them refused", sum.paths, sum.refused)
	if sum.cases < 1000 || sum.refused*10 < sum.cases || sum.refused*10 > sum.cases*9 {
		t.Error("too few cases, or nearly all of one kind")
	}
}

// rounds judges policies, other ones in each round.
func (s *truthSum) rounds(t *testing.T, world *truth.Round, apps map[string]*truthApp) {
	n1, n2 := twoNodes(t)
	agents := []*dumper{dumpOf(t, n1), dumpOf(t, n2)}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	begin := time.Now()
	for round := range truthRounds {
		setPolicies(t, world, rand.New(rand.NewPCG(seed, uint64(round))), fmt.Sprintf("r%d", round))
		for _, a := range agents {
			a.holds(t, world)
		}
		s.judge(t, world, apps, verdicts(t, world))
	}
	t.Logf("%d rounds in %v", truthRounds, time.Since(begin).Round(time.Millisecond))
}

// truthWorld makes the pods: five in the mesh and two that are not, on both nodes, in three namespaces.
func truthWorld(t *testing.T) (*truth.Round, map[string]*truthApp) {
	t.Helper()
	n1, n2 := twoNodes(t)
	w := &truth.Round{Ports: []int32{8080, 8081, 9000}}
	apps := make(map[string]*truthApp)
	var order []*truthApp
	for i, pods := range [][]string{{n1, n2, n1}, {n2, n1}, {n1, n2}} {
		space := namespace(t, truth.SpaceKey+"="+string(rune('x'+i)))
		if i < 2 {
			space.enrol()
		}
		w.Namespaces = append(w.Namespaces, truth.Namespace{Name: space.name, Labels: map[string]string{truth.SpaceKey: string(rune('x' + i))}})
		for j, node := range pods {
			named := map[string]int32{truth.MainPort: 8080, truth.OtherPort: 8081}
			if (i+j)%2 == 1 {
				named = map[string]int32{truth.MainPort: 8081, truth.OtherPort: 9000}
			}
			p := truth.Pod{
				Namespace: space.name, Name: string(rune('a' + j)), Named: named,
				Labels: map[string]string{truth.PodKey: string(rune('a' + j)), truth.TierKey: truth.Tiers()[(i+j)%2]},
			}
			a := &truthApp{enrolled: i < 2, app: space.pod(p.Name, onNode(node), withArgs("serve", "--http=:8080,:8081,:9000", "--echo="), func(pod *corev1.Pod) {
				maps.Copy(pod.Labels, p.Labels)
				for name, port := range named {
					pod.Spec.Containers[0].Ports = append(pod.Spec.Containers[0].Ports, corev1.ContainerPort{Name: name, ContainerPort: port})
				}
			})}
			p.Labels["app"] = p.Name
			w.Pods = append(w.Pods, p)
			apps[p.String()] = a
			order = append(order, a)
		}
	}
	for i, a := range order {
		a.ready()
		if a.enrolled {
			a.app.enrolled()
		}
		w.Pods[i].Address = netip.MustParseAddr(a.ip)
		a.prober = a.startProber()
	}
	return w, apps
}

// setPolicies replaces the policies of the world, in the cluster and here. Here they are then as the API server keeps them.
func setPolicies(t *testing.T, w *truth.Round, rng *rand.Rand, prefix string) {
	t.Helper()
	old := w.Policies
	w.Policies = nil
	for _, p := range truth.Policies(rng, w, prefix, truthPolicies) {
		made, err := shared.client.NetworkingV1().NetworkPolicies(p.Namespace).Create(t.Context(), &p, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("%v\n%s", err, dumpYAML(p))
		}
		made.ManagedFields = nil // nobody wants to read them
		w.Policies = append(w.Policies, *made)
	}
	for _, p := range old {
		if err := shared.client.NetworkingV1().NetworkPolicies(p.Namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func dumpYAML(v any) string {
	text, err := yaml.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// verdicts asks the oracle.
func verdicts(t *testing.T, w *truth.Round) []truth.Verdict {
	t.Helper()
	in, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), shared.program("e2e/netpol-oracle"))
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("oracle: %v", err)
	}
	var all []truth.Verdict
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("oracle: %v", err)
	}
	return all
}

// truthSum counts cases by the way that their connections take.
type truthSum struct {
	cases, mismatches, refused int
	paths                      map[string]int
}

// judge makes all connections of the verdicts at once and compares.
func (s *truthSum) judge(t *testing.T, w *truth.Round, apps map[string]*truthApp, all []truth.Verdict) {
	t.Helper()
	if s.paths == nil {
		s.paths = make(map[string]int)
	}
	asked := make(map[*truthApp][]truth.Verdict)
	for _, v := range all {
		if from := apps[v.From]; from.enrolled || apps[v.To].enrolled {
			asked[from] = append(asked[from], v)
		}
	}
	tables := probeTables(t, asked, apps)
	wrong := s.mismatches
	for from, vs := range asked {
		for i, v := range vs {
			to, got := apps[v.To], tables[from][i]
			want := (!from.enrolled || v.Egress) && (!to.enrolled || v.Ingress)
			s.cases++
			s.paths[path(from, to)]++
			if !want {
				s.refused++
			}
			answered := got.Pod == to.name && got.Namespace == to.space.name
			if answered != want || !answered && !got.refused() {
				s.mismatches++
				t.Errorf("%s to %s port %d (%s): got %+v; the oracle says out %t, in %t", v.From, v.To, v.Port, path(from, to), got, v.Egress, v.Ingress)
			}
		}
	}
	if s.mismatches > wrong {
		t.Fatalf("policies of this round:\n%s", dumpYAML(w.Policies))
	}
}

func path(from, to *truthApp) string {
	where := "across nodes"
	if from.node == to.node {
		where = "on one node"
	}
	switch {
	case !from.enrolled:
		return "plaintext in, " + where
	case !to.enrolled:
		return "plaintext out, " + where
	default:
		return "in the mesh, " + where
	}
}

// probeTables lets all pods probe at once.
func probeTables(t *testing.T, asked map[*truthApp][]truth.Verdict, apps map[string]*truthApp) map[*truthApp][]probed {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	tables := make(map[*truthApp][]probed)
	for from, vs := range asked {
		wg.Go(func() {
			var targets []string
			for _, v := range vs {
				targets = append(targets, apps[v.To].ip+":"+strconv.Itoa(int(v.Port)))
			}
			table, err := from.prober.ask(targets)
			mu.Lock()
			defer mu.Unlock()
			tables[from] = table
			errs = append(errs, err)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return tables
}
