package xds_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// TestNack: the good part of a response is applied, the bad part is reported, and
// the gate stays shut.
func TestNack(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	a.send(authorizations("n0", nil))
	answer := a.send(addresses("n1", nil,
		pod(t, "c//Pod/ns/a", "v1", "10.0.0.1"),
		rejectedPod(t, "c//Pod/ns/bad", "v1"),
		garbage("c//Pod/ns/garbage", "v1", xds.AddressType),
		pod(t, "c//Pod/ns/b", "v1", "10.0.0.2"),
	))
	detail := answer.GetErrorDetail()
	if detail == nil || detail.GetCode() != 0 ||
		!strings.HasPrefix(detail.GetMessage(), "c//Pod/ns/bad: address of 3 octets; c//Pod/ns/garbage: decode: ") {
		t.Errorf("error detail is %v", detail)
	}
	if n := r.store.Snapshot().WorkloadCount(); n != 2 {
		t.Errorf("%d workloads, want the 2 good ones", n)
	}
	if r.isReady() {
		t.Error("ready after a NACK")
	}
	if !strings.Contains(r.log.String(), "xds resources rejected") {
		t.Error("the rejection is not logged")
	}
	if answer := a.send(addresses("n2", nil, pod(t, "c//Pod/ns/bad", "v2", "10.0.0.3"))); !isAck(answer) {
		t.Errorf("answer is %v, want an ACK", answer)
	}
	<-r.Ready()
}

// TestNackKeepsPredecessor: a bad update leaves the good object.
func TestNackKeepsPredecessor(t *testing.T) {
	s := startServer(t)
	r := start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	a.send(addresses("n1", nil, pod(t, "c//Pod/ns/a", "v1", "10.0.0.1")))
	if answer := a.send(addresses("n2", nil, rejectedPod(t, "c//Pod/ns/a", "v2"))); isAck(answer) {
		t.Error("answer is an ACK")
	}
	if w := r.store.Snapshot().Workload("c//Pod/ns/a"); w == nil || len(w.Addresses) != 1 {
		t.Errorf("workload is %v, want the first version", w)
	}
}

// TestNackNotRecorded: after a reconnect the server is not told that a rejected
// resource is held, so it sends it again; of one in whose place something stands it
// is told no version, so that it also says when it is gone.
func TestNackNotRecorded(t *testing.T) {
	s := startServer(t)
	start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	a.send(addresses("n1", nil, pod(t, "c//Pod/ns/a", "v1", "10.0.0.1"), pod(t, "c//Pod/ns/c", "v1", "10.0.0.3")))
	a.send(addresses("n2", nil,
		rejectedPod(t, "c//Pod/ns/bad", "v1"),
		garbage("c//Pod/ns/garbage", "v1", xds.AddressType),
		rejectedPod(t, "c//Pod/ns/a", "v2"),
		pod(t, "c//Pod/ns/b", "v7", "10.0.0.2"),
	))
	a.send(authorizations("n3", nil, garbage("ns/p", "v1", xds.AuthorizationType), denyAll(t, "ns", "q", "v3"), denyAll(t, "ns", "r", "v1")))
	a.send(authorizations("n4", nil, garbage("ns/r", "v2", xds.AuthorizationType), garbage("without-namespace", "v2", xds.AuthorizationType)))
	a.end <- nil
	_, first, second := s.subscribed(t)
	want := map[string]string{"c//Pod/ns/a": "v1", "c//Pod/ns/b": "v7", "c//Pod/ns/c": "v1"}
	if d := cmp.Diff(want, first.GetInitialResourceVersions()); d != "" {
		t.Errorf("initial versions of addresses (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]string{"ns/p": "", "ns/q": "v3", "ns/r": ""}, second.GetInitialResourceVersions()); d != "" {
		t.Errorf("initial versions of policies (-want +got):\n%s", d)
	}
}

// TestNackLong: a refusal of very many resources is still a message of sane size.
func TestNackLong(t *testing.T) {
	s := startServer(t)
	start(t, s, xds.Config{})
	a, _, _ := s.subscribed(t)
	response := addresses("n1", nil)
	for range 5000 {
		response.Resources = append(response.Resources, rejectedPod(t, "c//Pod/ns/"+strings.Repeat("x", 100), "v1"))
	}
	if n := len(a.send(response).GetErrorDetail().GetMessage()); n < 1000 || n > 20_000 {
		t.Errorf("error detail has %d bytes", n)
	}
}
