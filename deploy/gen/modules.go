//go:build tools

package main

// Modules whose files are read and whose packages nothing imports: so that go.mod keeps their versions.
import _ "sigs.k8s.io/network-policy-api/apis/v1alpha2"
