package admin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Log levels beyond slog's own.
const (
	LevelTrace slog.Level = slog.LevelDebug - 4
	LevelOff   slog.Level = math.MaxInt32
)

// ScopeKey is the attribute that names the part of the program a log line comes from. Give it to a logger with
// With(ScopeKey, "proxy"); levels can be set for each scope.
const ScopeKey = "scope"

// Levels decides which log lines are written: one level for all, others for single scopes. It can be changed while
// loggers use it.
//
// Directives are separated by commas: a level ("info"), or a scope and its level ("proxy=debug", "proxy:debug"). A
// scope covers those below it: "dns" is asked for "dns/server" unless that has a level of its own.
type Levels struct {
	initial string
	change  sync.Mutex // serialises Change
	current atomic.Pointer[filter]
}

// filter is an immutable set of levels.
type filter struct {
	global slog.Level
	scopes map[string]slog.Level
}

// NewLevels returns the levels that the directives describe; info for all where they say nothing.
func NewLevels(directives string) (*Levels, error) {
	f, err := (&filter{global: slog.LevelInfo}).with(directives)
	if err != nil {
		return nil, fmt.Errorf("parse log levels: %w", err)
	}
	l := &Levels{initial: directives}
	l.current.Store(f)
	return l, nil
}

// Change applies the directives on top of the levels in force, or with reset on top of the initial ones. On error
// nothing changes.
func (l *Levels) Change(reset bool, directives string) error {
	l.change.Lock()
	defer l.change.Unlock()
	base := l.current.Load()
	if reset {
		initial, err := (&filter{global: slog.LevelInfo}).with(l.initial)
		if err != nil {
			return err
		}
		base = initial
	}
	f, err := base.with(directives)
	if err != nil {
		return err
	}
	l.current.Store(f)
	return nil
}

// String returns the directives in force: scopes by name, the general level last.
func (l *Levels) String() string {
	f := l.current.Load()
	scopes := make([]string, 0, len(f.scopes)+1)
	for scope, level := range f.scopes {
		scopes = append(scopes, scope+"="+levelName(level))
	}
	slices.SortFunc(scopes, func(a, b string) int { return cmp.Compare(a, b) })
	return strings.Join(append(scopes, levelName(f.global)), ",")
}

// Handler filters for next, whose own level should let everything pass.
func (l *Levels) Handler(next slog.Handler) slog.Handler { return &handler{levels: l, next: next} }

// Scope returns the level of a scope as it is at each moment, for a writer that is no slog.Handler.
func (l *Levels) Scope(name string) slog.Leveler { return scopeLevel{l, name} }

type scopeLevel struct {
	levels *Levels
	scope  string
}

// Level implements slog.Leveler.
func (s scopeLevel) Level() slog.Level { return s.levels.current.Load().level(s.scope) }

// with returns a copy with the directives applied.
func (f *filter) with(directives string) (*filter, error) {
	c := &filter{global: f.global, scopes: make(map[string]slog.Level, len(f.scopes))}
	for scope, level := range f.scopes {
		c.scopes[scope] = level
	}
	for clause := range strings.SplitSeq(directives, ",") {
		clause = strings.TrimSpace(clause)
		if clause == "" {
			continue
		}
		scope, name := cut(clause)
		level, ok := parseLevel(name)
		if !ok {
			return nil, fmt.Errorf("level %s is invalid: want error, warn, info, debug, trace or off, or scope=level", clause)
		}
		if scope == "" {
			c.global = level
		} else {
			c.scopes[scope] = level
		}
	}
	return c, nil
}

// cut separates scope and level. Scopes may contain colons themselves ("ztunnel::proxy=debug").
func cut(clause string) (scope, level string) {
	i := strings.LastIndexByte(clause, '=')
	if i < 0 {
		i = strings.LastIndexByte(clause, ':')
	}
	if i < 0 {
		return "", clause
	}
	return strings.TrimRight(clause[:i], ":"), clause[i+1:]
}

func (f *filter) level(scope string) slog.Level {
	for scope != "" && len(f.scopes) > 0 {
		if level, ok := f.scopes[scope]; ok {
			return level
		}
		scope = scope[:max(0, strings.LastIndexByte(scope, '/'))]
	}
	return f.global
}

var levelNames = [...]struct {
	level slog.Level
	name  string
}{
	{LevelTrace, "trace"}, {slog.LevelDebug, "debug"}, {slog.LevelInfo, "info"},
	{slog.LevelWarn, "warn"}, {slog.LevelError, "error"}, {LevelOff, "off"},
}

func parseLevel(name string) (slog.Level, bool) {
	for _, l := range levelNames {
		if strings.EqualFold(l.name, name) {
			return l.level, true
		}
	}
	return 0, false
}

func levelName(level slog.Level) string {
	for _, l := range levelNames {
		if l.level == level {
			return l.name
		}
	}
	return level.String()
}

// handler is a slog.Handler that knows its scope.
type handler struct {
	levels *Levels
	next   slog.Handler
	scope  string
	group  bool // inside a group the scope attribute is another one
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.levels.current.Load().level(h.scope) && h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	return h.next.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == ScopeKey && !h.group {
			c.scope = a.Value.String()
		}
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.next = h.next.WithGroup(name)
	c.group = true
	return &c
}
