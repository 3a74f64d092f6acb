package cluster

import (
	"errors"
	"testing"
	"time"
)

// Connections that are older than the enrolment of either end go on untouched; new ones are in the mesh.
func TestConnectionsSurviveEnrolment(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t)
	client, server := ns.run("client", onNode(n1)), ns.run("server", onNode(n2))
	near := ns.run("near", onNode(n1))
	across := client.hold(8, server.ip+":9000")
	beside := client.hold(8, near.ip+":9000")

	ns.enrol()
	for _, a := range []*app{client, server, near} {
		a.enrolled()
	}
	wantTLS(t, client, server)
	wantTLS(t, client, near)
	time.Sleep(2 * time.Second) // the connections go on talking
	t.Logf("across nodes: %+v", across.unbroken())
	t.Logf("within the node: %+v", beside.unbroken())
}

// A label that comes back while connections drain takes effect at once, and breaks none of these.
func TestRelabelWhileDraining(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	wantTLS(t, client, server)
	load := client.start("load", "--pause=20ms", "http://"+server.ip+":8080/")
	var across []*session
	for range 2 {
		across = append(across, client.hold(4, server.ip+":9000"))
		ns.leave()
		client.released()
		server.released()
		begin := time.Now()
		ns.enrol()
		client.enrolled()
		server.enrolled()
		if took := time.Since(begin); took > 20*time.Second { // a drain lasts for 25 s at least
			t.Errorf("the pods were in the mesh again after %v", took)
		}
		wantTLS(t, client, server)
	}
	for _, s := range across {
		t.Logf("connections of before: %+v", s.unbroken())
	}
	load.faultless()
	ns.leave()
	client.released()
	server.released()
	if shared.nodes == nil {
		return
	}
	wait(t, "the rules are gone", func() error {
		if client.captured() || server.captured() {
			return errors.New("a table is there")
		}
		return nil
	})
}

// Leaving the mesh breaks no connection: those in tunnels go on until they end, new ones are direct, then the rules go.
func TestUnlabelDrains(t *testing.T) {
	mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	client, server := ns.run("client", onNode(n1)).enrolled(), ns.run("server", onNode(n2)).enrolled()
	wantTLS(t, client, server)
	across := client.hold(8, server.ip+":9000")
	load := client.start("load", "http://"+server.ip+":8080/")

	ns.leave()
	client.released()
	server.released()
	time.Sleep(2 * time.Second) // the connections go on talking
	begin := since()
	client.mustGet("http://" + server.ip + ":8080/")
	t.Logf("connections of the mesh: %+v", across.unbroken())
	load.faultless()
	records, err := shared.mesh.accessLog(t.Context(), n2, begin.Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.str("message") == "connection opened" && r.str("dst.workload") == "server" {
			t.Errorf("a new connection went through the mesh: %v", r)
		}
	}
	if shared.nodes == nil {
		return
	}
	wait(t, "the rules are gone", func() error {
		if client.captured() || server.captured() {
			return errors.New("a table is there")
		}
		return nil
	})
}
