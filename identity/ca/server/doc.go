// Package server is the gRPC side of the certificate authority: the Istio
// certificate service (istio.v1.auth.IstioCertificateService), as istiod serves
// it to ztunnel and as package ca asks it.
//
// For each request it finds out who calls (Authenticate), for whom (the
// caller's own identity, or another one that Authorize allows), and has the
// public key signed (Authority). It holds no key and knows nothing of
// Kubernetes or of storage.
//
// What callers learn from a refusal is little: that they are not allowed, and
// never why; the reason is in the log. Only what is wrong with the request
// itself is said.
//
// A Server's methods may be called concurrently.
package server
