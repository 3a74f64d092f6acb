package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/cluster/truth"
)

// probed is the test program's account of one connection.
type probed struct {
	Target    string `json:"target"`
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Error     string `json:"error"`
	Millis    int64  `json:"millis"`
}

// refused reports whether somebody said no: a reset, which a client sees as a broken pipe when it comes before the request
// is written. A connection that nobody answers is not refused.
func (p *probed) refused() bool {
	return slices.ContainsFunc([]string{"connection reset", "broken pipe", "EOF", "connection refused"}, func(sign string) bool {
		return strings.Contains(p.Error, sign)
	})
}

// prober is a client in a pod that probes lists of targets.
type prober struct{ *session }

func (a *app) startProber() *prober {
	a.t.Helper()
	return &prober{a.start("probe", "--timeout=15s")}
}

// ask probes all targets at once; the table is in their order.
func (p *prober) ask(targets []string) ([]probed, error) {
	line, err := json.Marshal(targets)
	if err != nil {
		return nil, err
	}
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	if !p.out.Scan() {
		return nil, fmt.Errorf("%s ended: %w: %s", p.name, cmpOr(p.out.Err(), io.EOF), p.diag)
	}
	var table []probed
	if err := json.Unmarshal(p.out.Bytes(), &table); err != nil || len(table) != len(targets) {
		return nil, fmt.Errorf("%s: %d of %d answers: %w", p.name, len(table), len(targets), err)
	}
	return table, nil
}

// dumper asks one agent what it holds.
type dumper struct {
	node, url string
}

// dumpOf forwards a port of this machine to the admin server of the agent on a node.
func dumpOf(t *testing.T, node string) *dumper {
	t.Helper()
	agent, err := shared.mesh.agent(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	cmd := kubectlCommand(context.WithoutCancel(t.Context()), "port-forward", "-n", system, "pod/"+agent.Name, ":15000")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var diag bytes.Buffer
	cmd.Stderr = &diag
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() && diag.Len() > 0 {
			t.Logf("port-forward to the agent on %s: %s", node, diag.String())
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("port-forward to the agent on %s: %v", node, err)
	}
	addr, _, _ := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " ")
	return &dumper{node: node, url: "http://" + addr + "/config_dump"}
}

// holds waits until the agent has exactly the policies of the world.
func (d *dumper) holds(t *testing.T, w *truth.Round) {
	t.Helper()
	var want []string
	for _, p := range w.Policies {
		want = append(want, p.Namespace+"/"+p.Name)
	}
	slices.Sort(want)
	client := &http.Client{Timeout: patience}
	wait(t, "the agent on "+d.node+" has the policies", func() error {
		var dump struct {
			NetworkPolicies struct {
				Ready   bool `json:"ready"`
				Objects []struct {
					Policy *struct{ Namespace, Name string } `json:"policy"`
				} `json:"objects"`
			} `json:"networkPolicies"`
		}
		resp, err := client.Get(d.url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		if err := json.Unmarshal(body, &dump); err != nil {
			return err
		}
		var got []string
		for _, o := range dump.NetworkPolicies.Objects {
			if o.Policy != nil {
				got = append(got, o.Policy.Namespace+"/"+o.Policy.Name)
			}
		}
		if slices.Sort(got); !dump.NetworkPolicies.Ready || !slices.Equal(got, want) {
			return fmt.Errorf("it has %v (ready: %t), not %v", got, dump.NetworkPolicies.Ready, want)
		}
		return nil
	})
}
