// Package wiretap listens on an interface of a network namespace and tells what a stranger there could read.
//
// For each TCP connection and UDP conversation it counts packets and bytes, looks for given words in the payload (also
// where they span packets), and checks whether the bytes are TLS records and nothing else. It keeps no packets: memory
// is bounded by the number of flows. It serves the demonstration and tests; it decides nothing, changes nothing and
// knows no keys.
//
// A Tap belongs to one caller; Report may be called at any time, also from other goroutines.
package wiretap
