package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// The exit statuses of failures.
const (
	// exitWrong: something failed or, of commands that answer a question, the answer is not the one that was hoped for.
	exitWrong = 1
	// exitTrouble: a command that answers a question has no answer; or, of any, what is asked cannot be understood.
	exitTrouble = 2
)

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

// exitStatus is what a program that failed with an error exits with: exitWrong unless the error says otherwise.
func exitStatus(err error) int {
	var s withStatus
	if errors.As(err, &s) {
		return s.code
	}
	return exitWrong
}

// misused is the error of a command line that cannot be understood.
func misused(format string, args ...any) error {
	return withStatus{exitTrouble, fmt.Errorf(format, args...)}
}

// withTrouble makes every error of the command that has no status of its own end the program with exitTrouble.
func withTrouble(cmd *cobra.Command, run func(*cobra.Command, []string) error) *cobra.Command {
	wrap := func(err error) error {
		if _, has := errors.AsType[withStatus](err); has || err == nil {
			return err
		}
		return withStatus{exitTrouble, err}
	}
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, given []string) error { return wrap(args(cmd, given)) }
	cmd.RunE = func(cmd *cobra.Command, given []string) error { return wrap(run(cmd, given)) }
	return cmd
}
