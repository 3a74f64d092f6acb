// Package authority is the certificate authority of a mesh without anything
// around it: what it signs with, what it signs, which roots everybody is to
// trust, and how one root follows another without a failed handshake.
//
// A Signer is a signing certificate with its key. A State is what has to be
// stored: the signer, the one that is to follow it, those before it for their
// revocation lists, and the bundle of roots with the time at which each joined
// and leaves. Advance is the rotation, a pure function of State, time and
// Config. An Authority signs for one State.
//
// Storage, Kubernetes and the network are left to others (cmd/internal/kubeca,
// package server). Signers, States and Authorities are values that are not
// changed after they are made, so any number of goroutines may use them.
package authority
