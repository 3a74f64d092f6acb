// Package tunnel is one HBONE connection: TLS 1.3 records (hbone/record) and an HTTP/2 session (hbone/h2) on a socket of
// an event loop (hbone/loop), in the client or the server role.
//
// Client and Server do the handshake with crypto/tls on the calling goroutine and then hand socket and secrets to the
// loop. From then on everything happens on the loop: the owner gets Config's callbacks and a stream's Handler its events
// there, and methods marked "on the loop" may only be called there. Post reaches it from elsewhere.
//
// The package decides nothing: whom to trust is in the tls.Config, what a CONNECT may reach is the owner's business.
package tunnel
