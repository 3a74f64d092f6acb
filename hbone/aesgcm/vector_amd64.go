//go:build !purego

package aesgcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/subtle"
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/cpu"
)

// supported tells whether processor and system have all that the assembly uses.
var supported = cpu.X86.HasAES && cpu.X86.HasBMI2 &&
	cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL &&
	cpu.X86.HasAVX512VAES && cpu.X86.HasAVX512VPCLMULQDQ

// vector is what the assembly needs of a key; it knows the layout by go_asm.h.
type vector struct {
	// keys are the round keys: the first, those of rounds 1 to 9, of rounds 10 to 13 (only AES-256), the last.
	keys   [15]block
	rounds uint64
	// powers are those of GHASH's key from the 16th to the 1st, byte-reversed and one bit higher; then zeros, where the
	// last vector of a message may read.
	powers [16 + 3]block
}

type block [aes.BlockSize]byte

// message is what the assembly needs of a message besides its bytes, and the tag, which it writes.
type message struct {
	counter    block
	additional block
	lengths    block
	tag        block
}

// newVector returns nil where the assembly cannot run, or must not: in FIPS 140-3 mode only the standard library may
// encrypt.
func newVector(key []byte, cipher cipher.Block) inPlace {
	if !supported || fips140.Enabled() || (len(key) != 16 && len(key) != 32) {
		return nil
	}
	v := new(vector)
	v.expand(key)
	v.raise(cipher)
	return v
}

// expand is KeyExpansion of FIPS 197 section 5.2.
func (v *vector) expand(key []byte) {
	n := len(key) / 4
	v.rounds = uint64(n + 6)
	var words [4 * 15]uint32
	for i := range n {
		words[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	round := uint32(1)
	for i := n; i < 4*(n+7); i++ {
		word := words[i-1]
		switch {
		case i%n == 0:
			word = substitute(bits.RotateLeft32(word, -8)) ^ round
			round = round<<1 ^ round>>7*0x11b
		case n > 6 && i%n == 4:
			word = substitute(word)
		}
		words[i] = words[i-n] ^ word
	}
	for i := range n + 6 {
		v.keys[i].set(words[4*i:])
	}
	v.keys[len(v.keys)-1].set(words[4*(n+6):])
}

func (b *block) set(words []uint32) {
	for i := range 4 {
		binary.LittleEndian.PutUint32(b[4*i:], words[i])
	}
}

// raise computes the powers of GHASH's key, which is the encrypted block of zeros.
func (v *vector) raise(cipher cipher.Block) {
	var zero, key, first block
	cipher.Encrypt(key[:], zero[:])
	high, low := binary.BigEndian.Uint64(key[:]), binary.BigEndian.Uint64(key[8:])
	carry := -(high >> 63) // all ones, or none
	high, low = high<<1|low>>63, low<<1
	binary.LittleEndian.PutUint64(first[:], low^carry&1)
	binary.LittleEndian.PutUint64(first[8:], high^carry&(0xc2<<56))
	v.powers[15] = first
	for i := 14; i >= 0; i-- {
		multiply(&v.powers[i+1], &first, &v.powers[i])
	}
}

func (v *vector) seal(text, tag []byte, nonce *[NonceLen]byte, additional []byte) {
	m := newMessage(nonce, additional, len(text))
	crypt(v, &m, text, true)
	copy(tag, m.tag[:])
}

func (v *vector) open(text, tag []byte, nonce *[NonceLen]byte, additional []byte) ([]byte, error) {
	m := newMessage(nonce, additional, len(text))
	crypt(v, &m, text, false)
	if subtle.ConstantTimeCompare(m.tag[:], tag) != 1 {
		clear(text)
		return nil, ErrOpen
	}
	return text, nil
}

func newMessage(nonce *[NonceLen]byte, additional []byte, n int) message {
	var m message
	copy(m.counter[:], nonce[:])
	m.counter[len(m.counter)-1] = 1
	copy(m.additional[:], additional)
	binary.BigEndian.PutUint64(m.lengths[:], uint64(len(additional))*8)
	binary.BigEndian.PutUint64(m.lengths[8:], uint64(n)*8)
	return m
}

// crypt encrypts (seals) or decrypts text in place, which may be empty, and writes the tag that belongs to it to m.
//
//go:noescape
func crypt(v *vector, m *message, text []byte, seals bool)

// multiply multiplies two elements of GHASH's field, byte-reversed and b one bit higher.
//
//go:noescape
func multiply(a, b, product *block)

// substitute is SubWord of FIPS 197 section 5.2, without a table whose use a cache would tell of.
func substitute(word uint32) uint32
