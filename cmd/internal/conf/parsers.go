package conf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// String takes any text that is not empty.
func String(text string) (string, error) {
	if strings.TrimSpace(text) == "" {
		return "", errors.New("is empty")
	}
	return text, nil
}

// Bool takes true, false, 1 and 0.
func Bool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, errors.New("neither true nor false")
}

// Int takes a decimal number between low and high, both included.
func Int[T ~int | ~int32 | ~int64 | ~uint16 | ~uint32](low, high T) Parser[T] {
	return func(text string) (T, error) {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < int64(low) || n > int64(high) {
			return 0, fmt.Errorf("not a whole number from %d to %d", low, high)
		}
		return T(n), nil
	}
}

// Duration takes Go's notation (1m30s) between low and high, both included.
func Duration(low, high time.Duration) Parser[time.Duration] {
	return func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, errors.New("not a duration such as 500ms, 30s or 5m")
		}
		if d < low || d > high {
			return 0, fmt.Errorf("not between %s and %s", duration(low), duration(high))
		}
		return d, nil
	}
}

// Addr takes an IP address.
func Addr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, errors.New("not an IP address")
	}
	return a, nil
}

// AddrPort takes an IP address and a port; IPv6 addresses stand in brackets.
func AddrPort(text string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.AddrPort{}, errors.New("not an address and port such as 127.0.0.1:15000 or [::1]:15000")
	}
	return a, nil
}

// File takes the path of a readable regular file (or of a link to one).
func File(text string) (string, error) {
	f, err := os.Open(text)
	if err != nil {
		return "", reason(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", reason(err)
	}
	if info.IsDir() {
		return "", errors.New("is a directory")
	}
	return text, nil
}

// reason drops operation and path from a file error: the flag and its value say them already.
func reason(err error) error {
	if e := new(os.PathError); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// OneOf takes one of the given words.
func OneOf[T ~string](words ...T) Parser[T] {
	return func(text string) (T, error) {
		names := make([]string, len(words))
		for i, w := range words {
			if string(w) == text {
				return w, nil
			}
			names[i] = string(w)
		}
		return "", fmt.Errorf("not one of %s", strings.Join(names, ", "))
	}
}

// List takes values separated by commas; blanks around them and empty ones are dropped.
func List[T any](parse Parser[T]) Parser[[]T] {
	return func(text string) ([]T, error) {
		var values []T
		for part := range strings.SplitSeq(text, ",") {
			part = strings.TrimSpace(part)
			if part == "" {
				continue
			}
			v, err := parse(part)
			if err != nil {
				return nil, fmt.Errorf("element %s: %w", shown(part), err)
			}
			values = append(values, v)
		}
		return values, nil
	}
}
