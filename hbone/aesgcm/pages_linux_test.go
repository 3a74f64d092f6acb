package aesgcm

import (
	"bytes"
	"os"
	"syscall"
	"testing"
)

// Nothing is read or written in front of a message or behind it: there are pages that nobody may touch.
func TestPagesAround(t *testing.T) {
	page := os.Getpagesize()
	mem, err := syscall.Mmap(-1, 0, 3*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	for _, forbidden := range [][]byte{mem[:page], mem[2*page:]} {
		if err := syscall.Mprotect(forbidden, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	middle := mem[page : 2*page]
	for _, size := range []int{16, 32} {
		a := implementations(t, make([]byte, size))["new"]
		for n := range 600 {
			for _, buf := range [][]byte{middle[:n+TagLen], middle[page-n-TagLen:]} {
				nonce := &[NonceLen]byte{byte(n), byte(n >> 8)}
				text := bytes.Repeat([]byte{byte(n)}, n)
				copy(buf, text)
				a.Seal(buf, nonce, nil)
				if plain, err := a.Open(buf, nonce, nil); err != nil || !bytes.Equal(plain, text) {
					t.Fatalf("%d bytes: %v", n, err)
				}
			}
		}
	}
}
