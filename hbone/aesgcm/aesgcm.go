// Package aesgcm is AES-GCM (NIST SP 800-38D) in place, for records: assembly where the processor has AES and carry-less
// multiplication on 512-bit vectors (VAES, VPCLMULQDQ), which takes half the time, otherwise crypto/cipher's.
//
// Both make the same bytes. crypto/cipher's is the twin of the assembly: it is what runs where the assembly does not apply,
// and the tests hold one against the other.
package aesgcm

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
)

// NonceLen and TagLen are those of RFC 5116 section 5.1, the only ones that TLS 1.3 has.
const (
	NonceLen = 12
	TagLen   = 16
)

// maxAdditional is how much additional data the assembly takes. A record has 5 bytes of it, its header.
const maxAdditional = aes.BlockSize

// ErrOpen says that a message is not one that was sealed with the same key, nonce and additional data.
var ErrOpen = errors.New("message does not authenticate")

// AEAD is AES-GCM under one key. Several goroutines may use it at once.
type AEAD struct {
	standard cipher.AEAD
	vector   inPlace // nil where the assembly does not apply
}

// inPlace is the assembly, for at most maxAdditional bytes of additional data.
type inPlace interface {
	seal(text, tag []byte, nonce *[NonceLen]byte, additional []byte)
	open(text, tag []byte, nonce *[NonceLen]byte, additional []byte) ([]byte, error)
}

// New returns the AEAD of a key as crypto/aes takes it. The key is copied.
func New(key []byte) (AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return AEAD{}, err
	}
	standard, err := cipher.NewGCM(block)
	if err != nil {
		return AEAD{}, err
	}
	return AEAD{standard: standard, vector: newVector(key, block)}, nil
}

// Seal encrypts all of buf but the last TagLen bytes in place, and writes the tag there. Under one key a nonce is used
// once. The nonce escapes: one on the caller's stack would cost an allocation.
func (a *AEAD) Seal(buf []byte, nonce *[NonceLen]byte, additional []byte) {
	n := len(buf) - TagLen
	if a.vector != nil && len(additional) <= maxAdditional {
		a.vector.seal(buf[:n], buf[n:], nonce, additional)
		return
	}
	a.standard.Seal(buf[:0], nonce[:], buf[:n], additional)
}

// Open decrypts all of buf but the last TagLen bytes in place, and returns that. If those are not the tag it returns
// ErrOpen, and zeros are in place of the message. The nonce escapes as with Seal.
func (a *AEAD) Open(buf []byte, nonce *[NonceLen]byte, additional []byte) ([]byte, error) {
	n := len(buf) - TagLen
	if a.vector != nil && len(additional) <= maxAdditional && n >= 0 {
		return a.vector.open(buf[:n], buf[n:], nonce, additional)
	}
	plain, err := a.standard.Open(buf[:0], nonce[:], buf, additional)
	if err != nil {
		return nil, ErrOpen
	}
	return plain, nil
}
