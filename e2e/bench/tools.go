package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// runTool is the program when it is started again inside a namespace.
func runTool(name string, args []string) error {
	switch name {
	case "rate-server":
		return rateServer(args)
	case "rate-client":
		return rateClient(args, os.Stdout)
	case "hold-server":
		return holdServer(args)
	case "hold-client":
		return holdClient(args, os.Stdin, os.Stdout)
	case "attack":
		return attackTool(args, os.Stdout)
	case "limited":
		return limited(args)
	case "greet":
		return greet(args)
	case "sink":
		return sink(args)
	case "pour":
		return pour(args, os.Stdout)
	}
	return errors.New("no such tool")
}

func oneAddress(args []string) (netip.AddrPort, error) {
	if len(args) != 1 {
		return netip.AddrPort{}, errors.New("want one address")
	}
	return netip.ParseAddrPort(args[0])
}

// holdServer echoes and keeps connections as long as the client does.
func holdServer(args []string) error {
	addr, err := oneAddress(args)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var b [1]byte
			for {
				if _, err := c.Read(b[:]); err != nil {
					return
				}
				if _, err := c.Write(b[:]); err != nil {
					return
				}
			}
		}()
	}
}

// holdResult is what the hold client prints when as many connections are open as it was asked for.
type holdResult struct {
	Held    int     `json:"held"`
	Seconds float64 `json:"seconds"` // to open those that were not there before
}

// holdClient keeps as many connections open as the last line that it read says, each of which carried a byte both ways.
// It ends with its input.
func holdClient(args []string, in io.Reader, out io.Writer) error {
	addr, err := oneAddress(args)
	if err != nil {
		return err
	}
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		want, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
		if err != nil {
			return err
		}
		began := time.Now()
		more, err := openMany(addr, want-len(held))
		held = append(held, more...)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(holdResult{Held: len(held), Seconds: time.Since(began).Seconds()}); err != nil {
			return err
		}
	}
	return lines.Err()
}

func openMany(addr netip.AddrPort, n int) ([]net.Conn, error) {
	var (
		mu     sync.Mutex
		opened []net.Conn
		failed error
		left   atomic.Int64
		wg     sync.WaitGroup
	)
	left.Store(int64(n))
	for range 32 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				c, err := openOne(addr)
				mu.Lock()
				if err != nil {
					failed = err
					left.Store(0)
				} else {
					opened = append(opened, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return opened, failed
}

func openOne(addr netip.AddrPort) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr.String(), 20*time.Second)
	if err != nil {
		return nil, err
	}
	b := [1]byte{'h'}
	err = c.SetDeadline(time.Now().Add(20 * time.Second))
	if err == nil {
		_, err = c.Write(b[:])
	}
	if err == nil {
		_, err = io.ReadFull(c, b[:])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, c.SetDeadline(time.Time{})
}
