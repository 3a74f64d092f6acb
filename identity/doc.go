// Package identity holds the names and trust anchors that everything else in
// the mesh is decided on: SPIFFE IDs of service accounts, trust domains, and
// bundles of root certificates.
//
// It parses and compares; it does not fetch certificates (package manager),
// check peers (package mtls) or issue anything (package ca). It depends on the
// standard library alone.
//
// ID and TrustDomain are comparable values, usable as map keys. Bundle is
// immutable. All of them may be used by any number of goroutines at once.
package identity
