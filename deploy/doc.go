// Package deploy holds what is put into a cluster: the Helm chart, its profiles for Kubernetes distributions, and the
// custom resource definitions of the modules that Culvert implements, all embedded.
//
// It loads, renders, and reads what was rendered; it never talks to a cluster. Package cmd/internal/installer does. The
// definitions are extracted by deploy/gen into a directory that git ignores: a build without them works, and [CRDs] then
// returns [ErrNoCRDs].
//
// All functions are safe for concurrent use and return values of their own.
package deploy

//go:generate go run ./gen
