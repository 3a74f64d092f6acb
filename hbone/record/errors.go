package record

import (
	"errors"
	"fmt"
)

// ErrSuite is returned for a cipher suite that this package cannot speak: everything but TLS_AES_128_GCM_SHA256 and
// TLS_AES_256_GCM_SHA384.
var ErrSuite = errors.New("unsupported TLS 1.3 cipher suite")

// Alert is a TLS alert description (RFC 8446 section 6).
type Alert uint8

// The alerts that this package sends or branches on.
const (
	AlertCloseNotify       Alert = 0
	AlertUnexpectedMessage Alert = 10
	AlertBadRecordMAC      Alert = 20
	AlertRecordOverflow    Alert = 22
	AlertBadCertificate    Alert = 42
	AlertDecodeError       Alert = 50
	AlertInternalError     Alert = 80
	AlertUserCanceled      Alert = 90
)

var alertNames = map[Alert]string{
	0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure",
	42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
	46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error",
	51: "decrypt_error", 70: "protocol_version", 71: "insufficient_security", 80: "internal_error", 86: "inappropriate_fallback",
	90: "user_canceled", 109: "missing_extension", 110: "unsupported_extension", 112: "unrecognized_name",
	113: "bad_certificate_status_response", 115: "unknown_psk_identity", 116: "certificate_required", 120: "no_application_protocol",
}

// String returns the name of RFC 8446 section 6.
func (a Alert) String() string {
	if s, ok := alertNames[a]; ok {
		return s
	}
	return fmt.Sprintf("alert(%d)", uint8(a))
}

// Error is the end of a connection by a TLS alert: either the peer sent it (Remote), or this side has to send it because
// of what the peer did. A Remote certificate alert just after the handshake is the peer's refusal of our certificate.
type Error struct {
	Alert  Alert
	Remote bool
	Reason string // what the peer did wrong; empty when Remote
}

// Error implements error.
func (e *Error) Error() string {
	if e.Remote {
		return "peer sent TLS alert " + e.Alert.String()
	}
	return fmt.Sprintf("TLS %s: %s", e.Alert, e.Reason)
}

func fault(a Alert, reason string) error { return &Error{Alert: a, Reason: reason} }
