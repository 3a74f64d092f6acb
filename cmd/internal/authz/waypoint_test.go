package authz

import (
	"strings"
	"testing"
)

const waypoint = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: wp}
spec: {controllerName: istio.io/mesh-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: wp, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], selector: {gw: wp}, ports: [{port: 15008}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-5c9f-x, generateName: wp-5c9f-, namespace: shop, labels: {gw: wp, pod-template-hash: 5c9f, istio.io/dataplane-mode: none},
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: wp-5c9f, uid: u, controller: true}]}
spec: {serviceAccountName: wp, containers: [{name: c}]}
status: {phase: Running, podIP: 10.0.0.5, podIPs: [{ip: 10.0.0.5}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
`

// What is addressed to a service with a waypoint arrives with the waypoint's identity, whoever sent it.
func TestDecideBehindWaypoint(t *testing.T) {
	w := build(t, waypoint+authzPolicy("p", `{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {serviceAccounts: [wp]}}]}]}`))
	from := mustRef(t, "deployment/web")
	for _, tt := range []struct {
		to      string
		port    uint16
		allowed bool
		how     string
		note    string
	}{
		{"service/cart", 80, true, "waypoint shop/wp", "the waypoint judges the source"},
		{"deployment/cart", 8080, false, "mTLS", ""},
	} {
		all, err := w.Decide(Question{From: &from, To: mustRef(t, tt.to), Port: tt.port})
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: %+v, %v", tt.to, all, err)
		}
		if v := all[0]; v.Allowed != tt.allowed || v.How != tt.how || !strings.Contains(strings.Join(v.Notes, "|"), tt.note) {
			t.Errorf("%s: got %+v", tt.to, v)
		}
	}
}

// A Service of files has no address yet, and gets one when it is made: it is not headless, whose pods are dialled themselves.
func TestDecideBehindWaypointFromFiles(t *testing.T) {
	for _, tt := range []struct {
		name, addresses string
		allowed         bool
		how             string
	}{
		{"address", "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ", true, "waypoint shop/wp"},
		{"none_yet", "", true, "waypoint shop/wp"},
		{"empty", `clusterIP: "", `, true, "waypoint shop/wp"},
		{"headless", "clusterIP: None, ", false, "mTLS"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := strings.Replace(waypoint, "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ", tt.addresses, 1)
			w := build(t, objects+authzPolicy("p", `{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {serviceAccounts: [wp]}}]}]}`))
			from := mustRef(t, "deployment/web")
			all, err := w.Decide(Question{From: &from, To: mustRef(t, "service/cart"), Port: 80})
			if err != nil || len(all) != 1 {
				t.Fatalf("%+v, %v", all, err)
			}
			if v := all[0]; v.Allowed != tt.allowed || v.How != tt.how {
				t.Errorf("got %+v", v)
			}
		})
	}
}

// A waypoint of workloads alone judges what is addressed to them, not what is addressed to a Service of theirs: that arrives
// from who sent it.
func TestDecideServiceBehindWaypointOfWorkloads(t *testing.T) {
	objects := strings.NewReplacer(
		"metadata: {name: wp, namespace: shop}\nspec: {gatewayClassName", "metadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: workload}}\nspec: {gatewayClassName",
		", labels: {istio.io/use-waypoint: wp}}\nspec: {clusterIP: 10.96.0.1", "}\nspec: {clusterIP: 10.96.0.1",
	).Replace(waypoint) + `
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}
`
	w := build(t, objects+authzPolicy("p", `{selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {serviceAccounts: [web]}}]}]}`))
	from := mustRef(t, "deployment/web")
	for _, tt := range []struct {
		to      string
		port    uint16
		allowed bool
		how     string
	}{
		{"service/cart", 80, true, "mTLS"},
		{"deployment/cart", 8080, false, "waypoint shop/wp"},
	} {
		all, err := w.Decide(Question{From: &from, To: mustRef(t, tt.to), Port: tt.port})
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: %+v, %v", tt.to, all, err)
		}
		if v := all[0]; v.Allowed != tt.allowed || v.How != tt.how {
			t.Errorf("%s: got %+v", tt.to, v)
		}
	}
}

// What the source's agent refuses says nothing of the destination, which takes mTLS here.
func TestDecideBehindWaypointThatIsNotThere(t *testing.T) {
	w := build(t, strings.Replace(waypoint, "status: {addresses: [{type: Hostname, value: wp.shop.svc.cluster.local}]}", "", 1))
	from := mustRef(t, "deployment/web")
	all, err := w.Decide(Question{From: &from, To: mustRef(t, "service/cart"), Port: 80})
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	if v := all[0]; v.Allowed || !strings.Contains(v.Reason, "unknown waypoint") || len(v.Notes) > 0 {
		t.Errorf("got %+v", v)
	}
}

// A Deployment that does not run yet is on no node. What a Service does that stays on its node cannot be told of it, but policies
// can.
func TestDecideServiceOfOneNode(t *testing.T) {
	w := build(t, `
---
apiVersion: v1
kind: Service
metadata: {name: log, namespace: shop}
spec: {internalTrafficPolicy: Local, clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8], selector: {app: log}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: log-0, namespace: shop, labels: {app: log}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {serviceAccountName: log, nodeName: n1, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.0.3, podIPs: [{ip: 10.1.0.3}], conditions: [{type: Ready, status: "True"}]}
`)
	from := mustRef(t, "deployment/web")
	all, err := w.Decide(Question{From: &from, To: mustRef(t, "service/log"), Port: 80})
	if err != nil || len(all) != 1 || !all[0].Allowed || all[0].How != "mTLS" {
		t.Errorf("got %+v, %v", all, err)
	}
}
