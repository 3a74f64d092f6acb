package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// inUserNamespace runs this program again as root of a user namespace of its own, with network and mounts of its own.
func inUserNamespace(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start again in a user namespace: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGTERM,
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode()) // it has said why
	}
	return fmt.Errorf("this needs root, or a kernel that lets users make namespaces: %w%s", err, userNamespaceHint())
}

// userNamespaceHint names the switch that forbids user namespaces, if one of the known ones does.
func userNamespaceHint() string {
	for _, s := range []struct{ path, forbids string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0"},
		{"/proc/sys/user/max_user_namespaces", "0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"},
	} {
		text, err := os.ReadFile(s.path)
		if err == nil && strings.TrimSpace(string(text)) == s.forbids {
			return fmt.Sprintf(" (%s is %s)", s.path, s.forbids)
		}
	}
	return ""
}
