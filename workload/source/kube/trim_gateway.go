package kube

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func trimGateway(u *unstructured.Unstructured) *gatewayObject {
	o := &gatewayObject{header: makeHeader(u)}
	o.binding, o.hasBinding = u.GetAnnotations()[annotationInbound]
	var g gatewayv1.Gateway
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &g); err != nil {
		o.fault = bounded(err.Error())
		return o
	}
	o.class = string(g.Spec.GatewayClassName)
	for i := range g.Status.Addresses {
		a := &g.Status.Addresses[i]
		switch {
		case a.Type != nil && *a.Type == gatewayv1.HostnameAddressType:
			if host, err := parseHost(a.Value, false); err == nil {
				o.addresses = append(o.addresses, gatewayAddress{host: host})
			}
		case a.Type == nil || *a.Type == gatewayv1.IPAddressType:
			if addr, ok := parseAddr(a.Value); ok {
				o.addresses = append(o.addresses, gatewayAddress{addr: addr})
			}
		}
	}
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		out := listener{protocol: string(l.Protocol), port: l.Port, from: string(gatewayv1.NamespacesFromSame)}
		if r := l.AllowedRoutes; r != nil && r.Namespaces != nil {
			if r.Namespaces.From != nil {
				out.from = string(*r.Namespaces.From)
			}
			out.selector = r.Namespaces.Selector
		}
		o.listeners = append(o.listeners, out)
	}
	return o
}

func trimGatewayClass(u *unstructured.Unstructured) *gatewayClassObject {
	o := &gatewayClassObject{header: makeHeader(u)}
	o.controller, _, _ = unstructured.NestedString(u.Object, "spec", "controllerName")
	o.binding, o.hasBinding = u.GetAnnotations()[annotationInbound]
	return o
}
