// Package record is the TLS 1.3 record layer of an established connection (RFC 8446 section 5), without a socket.
//
// The handshake is crypto/tls's. What it leaves, one traffic secret per direction, is given to New; from then on this
// package seals and opens application records in place, answers KeyUpdate, ignores NewSessionTicket and keeps alerts.
// It owns no socket, clock or goroutine, takes bytes and returns bytes, and allocates nothing per record.
//
// A Conn belongs to one goroutine at a time. Its halves are independent: sealing never touches the opening half, except
// that Open may leave an answer to a KeyUpdate owed (see Conn.AppendKeyUpdate).
package record
