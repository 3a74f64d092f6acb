// Package refused is what the import test must refuse when it stands in the place of package identity: it reaches up
// to workload and over the fence to gRPC.
package refused

import (
	_ "google.golang.org/grpc"

	_ "github.com/culvert-mesh/culvert/identity/identitytest"
	_ "github.com/culvert-mesh/culvert/workload"
)
