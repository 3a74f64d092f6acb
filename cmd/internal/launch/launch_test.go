package launch

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
)

type settings struct {
	common Common
	fail   string
}

func sample(run func(context.Context, Given) error) Program[*settings] {
	return Program[*settings]{
		Name: "sample", Version: "v1", Revision: "abc",
		Read: func(args []string) (*settings, *conf.Set, error) {
			s := &settings{common: Defaults()}
			set := conf.New("sample", func(string) (string, bool) { return "", false })
			s.common.Declare(set)
			conf.Add(set, &s.fail, conf.String, conf.Option{Flag: "fail", Usage: "why it cannot be built"})
			return s, set, set.Parse(args)
		},
		Common: func(s *settings) Common { return s.common },
		Build: func(s *settings, g Given) (func(context.Context) error, error) {
			if s.fail != "" {
				return nil, errors.New(s.fail)
			}
			return func(ctx context.Context) error { return run(ctx, g) }, nil
		},
	}
}

func TestStart(t *testing.T) {
	for _, tt := range []struct {
		name, args string
		run        error
		code       int
		out, errs  []string
	}{
		{name: "version", args: "--version", out: []string{"sample v1 (abc)\n"}},
		{name: "version_word", args: "version", out: []string{"sample v1 (abc)\n"}},
		{name: "help", args: "--help", out: []string{"log-format"}},
		{name: "faulty", args: "--log-format=xml", code: Misused, errs: []string{"sample: faulty settings:", "log-format"}},
		{name: "admin", args: "--admin-address=0.0.0.0:15000", code: Misused, errs: []string{"admin-address: must be a loopback address"}},
		{name: "level", args: "--log-level=loud", code: Misused, errs: []string{"sample: --log-level: "}},
		{name: "unbuilt", args: "--fail=no kernel", code: Failed, errs: []string{"sample: no kernel\n"}},
		{name: "failed", args: "", run: errors.New("lost"), code: Failed, errs: []string{"level=ERROR msg=stopped error=lost"}},
		{name: "failed_json", args: "--log-format=json", run: errors.New("lost"), code: Failed, errs: []string{`"msg":"stopped","error":"lost"`}},
		{name: "ended", args: "--log-level=info,part=debug", errs: []string{"msg=heard"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := sample(func(_ context.Context, g Given) error {
				g.Logger.Debug("not heard")
				g.Logger.With(admin.ScopeKey, "part").Debug("heard")
				return tt.run
			})
			var args []string
			if tt.args != "" {
				args = []string{tt.args}
			}
			var out, errs strings.Builder
			if code := p.start(args, &out, &errs); code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, errs.String())
			}
			for text, want := range map[string][]string{out.String(): tt.out, errs.String(): tt.errs} {
				for _, part := range want {
					if !strings.Contains(text, part) {
						t.Errorf("it printed %q, want %q", text, part)
					}
				}
			}
			if strings.Contains(errs.String(), "not heard") {
				t.Error("a line below the level is there")
			}
		})
	}
}

// TestSignals: the program is told of them, and not ended by them.
func TestSignals(t *testing.T) {
	p := sample(func(ctx context.Context, g Given) error {
		for _, want := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
			if err := syscall.Kill(os.Getpid(), want.(syscall.Signal)); err != nil {
				return err
			}
			if got := <-g.Signals; got != want {
				t.Errorf("signal %v, want %v", got, want)
			}
		}
		return ctx.Err()
	})
	if code := p.start(nil, t.Output(), t.Output()); code != Done {
		t.Errorf("exit code %d", code)
	}
}
