package main

import "errors"

// withStatus is an error with the exit status that it makes. Without an error of its own nothing is printed: everything has
// been said.
type withStatus struct {
	code int
	err  error
}

func (s withStatus) Error() string {
	if s.err == nil {
		return ""
	}
	return s.err.Error()
}

func (s withStatus) Unwrap() error { return s.err }

// exitStatus is what a program that failed with an error exits with: 1 unless the error says otherwise.
func exitStatus(err error) int {
	var s withStatus
	if errors.As(err, &s) {
		return s.code
	}
	return 1
}
