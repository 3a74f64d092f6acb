package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// rateThreads is how many connections the rate server answers at a time: twice the clients.
const rateThreads = 32

// rateServer answers one byte with one byte and closes, on blocking sockets: the least that a server can do, so that
// the measurement is of what is between.
func rateServer(args []string) error {
	addr, err := oneAddress(args)
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := syscall.Listen(fd, 16384); err != nil {
		return os.NewSyscallError("listen", err)
	}
	return serveRate(fd)
}

func serveRate(fd int) error {
	ownProcessors(rateThreads)
	failed := make(chan error, rateThreads)
	for range rateThreads {
		go func() {
			runtime.LockOSThread()
			var b [1]byte
			for {
				c, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC)
				switch {
				case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ECONNABORTED):
					continue
				case err != nil:
					failed <- os.NewSyscallError("accept", err)
					return
				}
				answerOnce(c, b[:])
			}
		}()
	}
	return <-failed
}

func answerOnce(c int, b []byte) {
	defer func() { _ = syscall.Close(c) }()
	if setTimeouts(c) != nil {
		return
	}
	if n, err := again(func() (int, error) { return syscall.Read(c, b) }); n == 1 && err == nil {
		_, _ = again(func() (int, error) { return syscall.Write(c, b) }) // the client counts what arrives
	}
}

// ownProcessors lets each of n threads keep a processor of Go's scheduler while it blocks in a system call. With fewer,
// every return from the kernel is a hand-over between threads, and the tool takes more time than what it measures.
func ownProcessors(n int) { runtime.GOMAXPROCS(n + 2) }

// again repeats a system call that a signal interrupted: those with a time limit are not restarted by the kernel, and
// Go's scheduler sends signals.
func again(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// setTimeouts keeps a blocking socket from blocking for ever.
func setTimeouts(fd int) error {
	limit := syscall.Timeval{Sec: 10}
	return errors.Join(
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit),
	)
}

// rateResult is what the rate client prints.
type rateResult struct {
	Connections int     `json:"connections"` // completed: a byte there, a byte back, closed by the server
	Failed      int     `json:"failed"`
	Seconds     float64 `json:"seconds"`
	Error       string  `json:"error,omitempty"` // of one that failed
}

// rateClient opens connections as fast as 16 clients can.
func rateClient(args []string, out io.Writer) error {
	f := flag.NewFlagSet("rate-client", flag.ContinueOnError)
	clients := f.Int("clients", 16, "clients")
	duration := f.Duration("duration", 4*time.Second, "how long")
	if err := f.Parse(args); err != nil {
		return err
	}
	addr, err := oneAddress(f.Args())
	if err != nil {
		return err
	}
	ownProcessors(*clients)
	var good, bad atomic.Int64
	var lastError atomic.Value
	began := time.Now()
	deadline := began.Add(*duration)
	var wg sync.WaitGroup
	for range *clients {
		wg.Go(func() {
			runtime.LockOSThread()
			target := &syscall.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
			for time.Now().Before(deadline) {
				if err := connectOnce(target); err != nil {
					bad.Add(1)
					lastError.Store(err.Error())
					time.Sleep(time.Millisecond) // a refusal is no load
					continue
				}
				good.Add(1)
			}
		})
	}
	wg.Wait()
	result := rateResult{Connections: int(good.Load()), Failed: int(bad.Load()), Seconds: time.Since(began).Seconds()}
	if text, ok := lastError.Load().(string); ok {
		result.Error = text
	}
	return json.NewEncoder(out).Encode(result)
}

// connectOnce is one connection: a byte there, a byte back, the end.
func connectOnce(target *syscall.SockaddrInet4) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := setTimeouts(fd); err != nil {
		return err
	}
	// Asked again after a signal, connect waits for the attempt that is under way.
	if _, err := again(func() (int, error) { return 0, syscall.Connect(fd, target) }); err != nil {
		return os.NewSyscallError("connect", err)
	}
	b := [1]byte{'c'}
	if _, err := again(func() (int, error) { return syscall.Write(fd, b[:]) }); err != nil {
		return os.NewSyscallError("write", err)
	}
	for _, want := range []int{1, 0} { // the answer, then the end
		n, err := again(func() (int, error) { return syscall.Read(fd, b[:]) })
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if n != want {
			return fmt.Errorf("read %d bytes, want %d", n, want)
		}
	}
	return nil
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
