// Package kubeca keeps the mesh's certificate authority in Kubernetes: what it
// signs with in a Secret, what everybody is to trust in ConfigMaps, who asks in
// a TokenReview, and where his pods run.
//
// A CA follows the Secret in every replica of the controller (Run) and signs
// with what is there. The replica that leads also advances it (Lead): it makes
// new roots, takes over an authority that the user brings in the Secret
// cacerts, and publishes the bundle and the revocation lists. Replicas only
// meet in the Secret: it is created once, whoever comes first, and each change
// is made to the version that was read.
//
//	cacerts (user) ──► Lead ──► Secret culvert-ca ──► Run ──► Issue
//	                    └────► ConfigMaps culvert-ca-root, culvert-ca-crl
//
// The Secrets are read every few seconds and not watched: that needs the verb
// get on two names only, and nothing here is in a hurry.
//
// An Authenticator says who has a token, a NodeAuthorizer which identities he
// may have. How rotation goes is decided in identity/ca/authority, the protocol
// is that of identity/ca/server.
//
// All exported methods may be called concurrently.
package kubeca
