// Package hbone is the public face of the tunnel engine for code that wants ordinary connections: a Dialer that opens
// CONNECT streams to an HBONE server and a Listener that accepts them, both as net.Conn.
//
// It is an adapter at the edge. The node proxy itself does not use it: there, bytes go from socket to tunnel on an event
// loop without a goroutine (hbone/relay). The wire is specified in docs/hbone.md.
package hbone
