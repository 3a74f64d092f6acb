package aesgcm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// implementations are what New gives, and the standard library's alone, which is what New gives elsewhere.
func implementations(t testing.TB, key []byte) map[string]*AEAD {
	t.Helper()
	a, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*AEAD{"new": &a, "standard": {standard: a.standard}}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seal returns the sealed message.
func seal(a *AEAD, nonce *[NonceLen]byte, text, additional []byte) []byte {
	buf := append(slices.Clone(text), make([]byte, TagLen)...)
	a.Seal(buf, nonce, additional)
	return buf
}

// The test cases with nonces of 12 bytes and keys of 16 and 32 of "The Galois/Counter Mode of Operation" (McGrew and
// Viega), appendix B.
func TestVectors(t *testing.T) {
	const (
		key        = "feffe9928665731c6d6a8f9467308308"
		nonce      = "cafebabefacedbaddecaf888"
		text       = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
		end        = "1aafd255"
		additional = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
		sealed128  = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091"
		sealed256  = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
	)
	zeros := func(n int) string { return strings.Repeat("00", n) }
	tests := []struct{ name, key, nonce, text, additional, sealed, tag string }{
		{"1", zeros(16), zeros(12), "", "", "", "58e2fccefa7e3061367f1d57a4e7455a"},
		{"2", zeros(16), zeros(12), zeros(16), "", "0388dace60b6a392f328c2b971b2fe78", "ab6e47d42cec13bdf53a67b21257bddf"},
		{"3", key, nonce, text + end, "", sealed128 + "473f5985", "4d5c2af327cd64a62cf35abd2ba6fab4"},
		{"4", key, nonce, text, additional, sealed128, "5bc94fbc3221a5db94fae95ae7121a47"},
		{"13", zeros(32), zeros(12), "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
		{"14", zeros(32), zeros(12), zeros(16), "", "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
		{"15", key + key, nonce, text + end, "", sealed256 + "898015ad", "b094dac5d93471bdec1a502270e3cc6c"},
		{"16", key + key, nonce, text, additional, sealed256, "76fc6ece0f4e1768cddf8853bb2d551b"},
	}
	for _, tt := range tests {
		for name, a := range implementations(t, unhex(t, tt.key)) {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				n := [NonceLen]byte(unhex(t, tt.nonce))
				got := seal(a, &n, unhex(t, tt.text), unhex(t, tt.additional))
				if want := tt.sealed + tt.tag; hex.EncodeToString(got) != want {
					t.Fatalf("sealed as\n%x, want\n%s", got, want)
				}
				plain, err := a.Open(got, &n, unhex(t, tt.additional))
				if err != nil || hex.EncodeToString(plain) != tt.text {
					t.Errorf("opened as %x, %v", plain, err)
				}
			})
		}
	}
}

// lengths are all around the borders of the assembly's loop, and those of records.
func lengths() []int {
	var all []int
	for n := range 3*256 + 2 {
		all = append(all, n)
	}
	return append(all, 1<<14-1, 1<<14, 1<<14+1, 1<<20+1)
}

// Both implementations make the same of every length, touch nothing around it, and open what the other sealed.
func TestTwins(t *testing.T) {
	for _, size := range []int{16, 24, 32} {
		t.Run(fmt.Sprintf("key of %d", size), func(t *testing.T) {
			r := rand.NewChaCha8([32]byte{byte(size)})
			key := make([]byte, size)
			r.Read(key)
			both := implementations(t, key)
			for i, n := range lengths() {
				var nonce [NonceLen]byte
				r.Read(nonce[:])
				additional := make([]byte, i%(maxAdditional+2))
				r.Read(additional)
				text := make([]byte, n)
				r.Read(text)
				want := seal(both["standard"], &nonce, text, additional)

				const guard = 70 // more than a vector
				around := bytes.Repeat([]byte{0xa5}, guard+n+TagLen+guard)
				buf := around[guard : guard+n+TagLen : guard+n+TagLen]
				check := func(what string, got, want []byte) {
					t.Helper()
					if !bytes.Equal(got, want) {
						t.Fatalf("%s %d bytes with %d of additional data: differs from the standard library", what, n, len(additional))
					}
					for _, b := range slices.Concat(around[:guard], around[guard+n+TagLen:]) {
						if b != 0xa5 {
							t.Fatalf("%s %d bytes: wrote outside of them", what, n)
						}
					}
				}
				copy(buf, text)
				both["new"].Seal(buf, &nonce, additional)
				check("seal", buf, want)
				plain, err := both["new"].Open(buf, &nonce, additional)
				if err != nil {
					t.Fatalf("open %d bytes: %v", n, err)
				}
				check("open", plain, text)
			}
		})
	}
}

// What is not as it was sealed is refused, and nothing of it is left to be used by mistake.
func TestOpenRefuses(t *testing.T) {
	key := make([]byte, 16)
	for name, a := range implementations(t, key) {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, 16, 100, 256, 300} {
				var nonce [NonceLen]byte
				additional := []byte{23, 3, 3, 1, 60}
				sealed := seal(a, &nonce, bytes.Repeat([]byte("x"), n), additional)
				refused := func(what string, buf []byte, nonce *[NonceLen]byte, additional []byte) {
					t.Helper()
					plain, err := a.Open(buf, nonce, additional)
					if !errors.Is(err, ErrOpen) || plain != nil {
						t.Fatalf("%d bytes with %s changed: %q, %v", n, what, plain, err)
					}
					if len(buf) > TagLen && bytes.ContainsFunc(buf[:len(buf)-TagLen], func(r rune) bool { return r != 0 }) {
						t.Fatalf("%d bytes with %s changed: left %x", n, what, buf)
					}
				}
				for at := range sealed {
					for bit := range 8 {
						buf := slices.Clone(sealed)
						buf[at] ^= 1 << bit
						refused("a bit", buf, &nonce, additional)
					}
				}
				refused("the nonce", slices.Clone(sealed), &[NonceLen]byte{11: 1}, additional)
				refused("additional data", slices.Clone(sealed), &nonce, []byte{23, 3, 3, 1, 61})
				refused("the end of additional data", slices.Clone(sealed), &nonce, append(slices.Clone(additional), 0))
				refused("the end", slices.Clone(sealed[:len(sealed)-1]), &nonce, additional)
			}
			for n := range TagLen {
				if _, err := a.Open(make([]byte, n), new([NonceLen]byte), nil); !errors.Is(err, ErrOpen) {
					t.Errorf("%d bytes, which have no tag: %v", n, err)
				}
			}
		})
	}
}

func TestKeysOfOtherLengths(t *testing.T) {
	for _, n := range []int{0, 15, 17, 31, 33} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("key of %d bytes: no error", n)
		}
	}
}

// One AEAD in many hands: the race detector does not see into assembly, but wrong bytes would be seen.
func TestManyGoroutines(t *testing.T) {
	a := implementations(t, make([]byte, 32))["new"]
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			nonce := [NonceLen]byte{byte(g)}
			text := bytes.Repeat([]byte{byte(g)}, 1000)
			for range 500 {
				if plain, err := a.Open(seal(a, &nonce, text, nil), &nonce, nil); err != nil || !bytes.Equal(plain, text) {
					t.Errorf("goroutine %d: %v", g, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// FuzzTwins holds the assembly against the standard library.
func FuzzTwins(f *testing.F) {
	f.Add(make([]byte, 32), []byte("text"), []byte{23, 3, 3, 0, 20})
	f.Add(make([]byte, 16), bytes.Repeat([]byte("x"), 257), []byte{})
	f.Add([]byte("0123456789abcdef"), make([]byte, 255), make([]byte, 17))
	f.Fuzz(func(t *testing.T, key, text, additional []byte) {
		size := 16
		if len(key) >= 32 {
			size = 32
		}
		both := implementations(t, append(key, make([]byte, 32)...)[:size])
		var nonce [NonceLen]byte
		copy(nonce[:], text)
		want := seal(both["standard"], &nonce, text, additional)
		got := seal(both["new"], &nonce, text, additional)
		if !bytes.Equal(got, want) {
			t.Fatalf("sealed as\n%x, want\n%x", got, want)
		}
		if plain, err := both["new"].Open(got, &nonce, additional); err != nil || !bytes.Equal(plain, text) {
			t.Fatalf("opened as %x, %v", plain, err)
		}
		if forged, err := both["new"].Open(slices.Concat(text, make([]byte, TagLen)), &nonce, additional); err == nil {
			t.Fatalf("opened what nobody sealed: %x", forged)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{16, 32} {
		for _, n := range []int{64, 256, 1 << 14} {
			for name, a := range implementations(b, make([]byte, size)) {
				b.Run(fmt.Sprintf("AES-%d/%d bytes/%s", 8*size, n, name), func(b *testing.B) {
					buf := make([]byte, n+TagLen)
					nonce := new([NonceLen]byte)
					additional := make([]byte, 5)
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for b.Loop() {
						a.Seal(buf, nonce, additional)
					}
				})
			}
		}
	}
}
