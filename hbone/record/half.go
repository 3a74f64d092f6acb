package record

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/culvert-mesh/culvert/hbone/aesgcm"
)

// half is one direction: cipher, key, static IV and the sequence number of the next record.
type half struct {
	suite  uint16
	secret []byte
	aead   aesgcm.AEAD
	iv     [nonceLen]byte
	nonce  [nonceLen]byte // scratch: one on the stack would escape
	seq    uint64
}

const nonceLen = aesgcm.NonceLen

func suiteHash(suite uint16) (newHash func() hash.Hash, keyLen, secretLen int, err error) {
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		return sha256.New, 16, sha256.Size, nil
	case tls.TLS_AES_256_GCM_SHA384:
		return sha512.New384, 32, sha512.Size384, nil
	default:
		return nil, 0, 0, fmt.Errorf("%w: %s", ErrSuite, tls.CipherSuiteName(suite))
	}
}

func (h *half) init(suite uint16, secret []byte, seq uint64) error {
	newHash, keyLen, secretLen, err := suiteHash(suite)
	if err != nil {
		return err
	}
	if len(secret) != secretLen {
		return fmt.Errorf("traffic secret of %d bytes for %s, want %d", len(secret), tls.CipherSuiteName(suite), secretLen)
	}
	key, err := expandLabel(newHash, secret, "key", keyLen)
	if err != nil {
		return err
	}
	iv, err := expandLabel(newHash, secret, "iv", nonceLen)
	if err != nil {
		return err
	}
	aead, err := aesgcm.New(key)
	if err != nil {
		return fmt.Errorf("make cipher: %w", err)
	}
	h.suite, h.aead, h.seq = suite, aead, seq
	h.secret = append(h.secret[:0], secret...)
	copy(h.iv[:], iv)
	return nil
}

// next moves the half to its next traffic secret (RFC 8446 section 7.2), sequence number 0.
func (h *half) next() error {
	newHash, _, secretLen, err := suiteHash(h.suite)
	if err != nil {
		return err
	}
	secret, err := expandLabel(newHash, h.secret, "traffic upd", secretLen)
	if err != nil {
		return err
	}
	return h.init(h.suite, secret, 0)
}

// bump returns the nonce of the next record (RFC 8446 section 5.3) and counts it.
func (h *half) bump() *[nonceLen]byte {
	h.nonce = h.iv
	low := h.nonce[nonceLen-8:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^h.seq)
	h.seq++
	return &h.nonce
}

// expandLabel is HKDF-Expand-Label of RFC 8446 section 7.1 with an empty context.
func expandLabel(newHash func() hash.Hash, secret []byte, label string, length int) ([]byte, error) {
	info := make([]byte, 0, 2+1+6+len(label)+1)
	info = binary.BigEndian.AppendUint16(info, uint16(length))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	info = append(info, 0)
	out, err := hkdf.Expand(newHash, secret, string(info), length)
	if err != nil {
		return nil, fmt.Errorf("derive %q: %w", label, err)
	}
	return out, nil
}
