package cluster

import "testing"

// onlyPorts is a NetworkPolicy as it was written before there was a mesh: ports of the pods app=server, for clients of the
// namespace with the label app=client. Of 15008 it says nothing.
func onlyPorts(ports string) string {
	return `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: ` + ports
}

// A NetworkPolicy means the port inside of the tunnel and the pod that is really there: another port of the same pod is
// refused though both come to 15008, and so is another client, wherever it is.
func TestNetworkPolicyInnerPort(t *testing.T) {
	m := mesh(t)
	n1, n2 := twoNodes(t)
	ns := namespace(t, modeLabel+"=ambient")
	two := withArgs("serve", "--http=:8080,:8081")
	server := ns.pod("server", onNode(n2), two, withLabel("app", "server"))
	client := ns.pod("client", onNode(n1), withLabel("app", "client"))
	near := ns.pod("near", onNode(n2), withLabel("app", "client"))
	other := ns.pod("other", onNode(n1), withLabel("app", "other"))
	for _, a := range []*app{server, client, near, other} {
		a.ready().enrolled()
	}
	web, admin := "http://"+server.ip+":8080/", "http://"+server.ip+":8081/"
	for _, a := range []*app{client, near, other} {
		a.reach(web)
		a.reach(admin)
	}

	begin := since()
	ns.apply(onlyPorts("[{port: 8080}, {port: 9000}]"))
	for _, a := range []*app{client, near} {
		a.refused(admin)
		a.mustGet(web)
	}
	other.refused(web)
	m.wantRecord(t, n2, begin, map[string]string{
		"direction": "inbound", "src.workload": "client", "dst.workload": "server", "dst.hbone_addr": server.ip + ":8081",
		"error": "connection closed due to policy rejection: ingress denied by netpol " + ns.name + "/only: selected by a network policy, and no rule allows it",
	})
	stranger := outsider(t, n1)
	stranger.refused(web)

	// A change counts for connections that live, within a second of its coming to the agent.
	held := client.hold(3, server.ip+":9000")
	begin = since()
	ns.apply(onlyPorts("[{port: 8081}]"))
	t.Logf("connections were ended %s after the change", held.cut(begin))
	client.reach(admin)
	client.refused(web)

	// Labels count, too, and when the policy goes everybody is let in again.
	if out, err := kubectl(t.Context(), nil, "label", "--overwrite", "-n", ns.name, "pod", other.name, "app=client"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	other.reach(admin)
	ns.remove("networkpolicy", "only")
	for _, a := range []*app{client, near, other, stranger} {
		a.reach(web)
	}
}
