// Package h2 is an HTTP/2 session (RFC 9113) that carries CONNECT streams (section 8.5), without a socket.
//
// It is complete in what HBONE needs: SETTINGS, HEADERS with CONTINUATION, DATA, WINDOW_UPDATE, RST_STREAM, PING and
// GOAWAY, and refuses everything else with the error that the RFC names. Session.Feed takes bytes as they arrive, in
// pieces of any size, and calls Events; frames to send collect in Session.Out. DATA payload never passes through the
// package when sending: the caller writes Session.DataHeader in front of payload it already has in place.
//
// It owns no socket, clock or goroutine. A Session belongs to one goroutine at a time.
package h2
