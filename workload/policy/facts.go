package policy

import (
	"net/netip"
)

// facts are a Connection, prepared for comparing. They live on the caller's
// stack: principal and namespace are parts of a buffer there.
type facts struct {
	known          bool   // the source has an identity
	principal      []byte // empty unless known
	namespace      []byte // empty unless known
	serviceAccount ServiceAccount
	source         netip.Addr
	destination    netip.Addr
	port           uint16
}

// factBuffer holds the principals of all names that Kubernetes allows in trust
// domains of an ordinary length; longer ones are allocated.
type factBuffer [256]byte

// factsOf returns the facts of a connection. It returns them, and does not fill
// them in, so that buf can stay on the caller's stack.
func factsOf(c *Connection, buf *factBuffer) facts {
	f := facts{
		source:      c.SourceIP.Unmap().WithZone(""),
		destination: c.Destination.Addr().Unmap().WithZone(""),
		port:        c.Destination.Port(),
	}
	if c.Source.IsZero() {
		return f
	}
	f.known = true
	f.principal = c.Source.AppendPrincipal(buf[:0])
	f.serviceAccount = ServiceAccount{Namespace: c.Source.Namespace(), Name: c.Source.ServiceAccount()}
	// A principal ends in "<namespace>/sa/<name>".
	end := len(f.principal) - len("/sa/") - len(f.serviceAccount.Name)
	f.namespace = f.principal[end-len(f.serviceAccount.Namespace) : end]
	return f
}
