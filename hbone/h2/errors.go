package h2

import (
	"errors"
	"fmt"
)

// ErrCode is an HTTP/2 error code (RFC 9113 section 7).
type ErrCode uint32

// The error codes of RFC 9113 section 7.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var errCodeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
	"REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String returns the name of RFC 9113 section 7.
func (c ErrCode) String() string {
	if int(c) < len(errCodeNames) {
		return errCodeNames[c]
	}
	return fmt.Sprintf("error code %d", uint32(c))
}

// ConnError ends the whole connection: the caller sends what Out holds (a GOAWAY with Code is in it) and closes.
type ConnError struct {
	Code   ErrCode
	Reason string
}

// Error implements error.
func (e *ConnError) Error() string { return fmt.Sprintf("HTTP/2 %s: %s", e.Code, e.Reason) }

// Errors of Open.
var (
	// ErrStreamLimit says that the peer allows no further concurrent stream now.
	ErrStreamLimit = errors.New("peer's stream limit is reached")
	// ErrGoingAway says that no stream can be opened on this connection any more.
	ErrGoingAway = errors.New("connection is going away")
)

func connFault(code ErrCode, reason string) error { return &ConnError{Code: code, Reason: reason} }
