// netpol-oracle judges connections by the matcher of cyclonus, which nobody
// here wrote. It reads a truth.Round as JSON and writes a list of
// truth.Verdict: for every pair of different pods and every port.
//
// It is a module of its own, so that the matcher's dependencies do not reach
// the product's.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/culvert-mesh/culvert/e2e/cluster/truth"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "netpol-oracle:", err)
		os.Exit(1)
	}
}

func run() error {
	var r truth.Round
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		return fmt.Errorf("read a round: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(judge(&r))
}
