package file

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// maxSize bounds the file. A hundred thousand workloads take about 60 MiB.
const maxSize = 256 << 20

// State is the content of a file.
type State struct {
	Workloads []*workload.Workload
	Services  []*workload.Service
	Policies  []*policy.Policy
	// NetworkPolicies are the policies of Kubernetes and what they select by.
	NetworkPolicies []netpol.Object
	// Warnings are parts that were left out, which makes nothing more
	// permissive: the file is used all the same.
	Warnings []Fault
}

// Fault is one thing that is wrong with a file.
type Fault struct {
	File   string
	Line   int // from 1; 0 when the fault has no place
	Reason string
}

// Error returns "FILE:LINE: reason".
func (f Fault) Error() string {
	if f.Line == 0 {
		return f.File + ": " + f.Reason
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Reason)
}

// Load reads and decodes the file. The error holds one Fault for each thing
// that is wrong (up to a limit), or why the file cannot be read.
func Load(path string) (State, error) {
	data, err := read(path)
	if err != nil {
		return State{}, err
	}
	return Decode(path, data)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read workloads: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	err = errors.Join(err, f.Close())
	if err != nil {
		return nil, fmt.Errorf("read workloads: %w", err)
	}
	if len(data) > maxSize {
		return nil, Fault{File: path, Reason: fmt.Sprintf("larger than %d bytes", maxSize)}
	}
	return data, nil
}
