// Package conf fills a program's settings from flags and environment variables and names every fault at once.
//
// A program declares its options with [Add], each bound to a field of its own settings struct; the field's value at that
// moment is the default. [Set.Parse] then takes, for each option, the flag if given, else the first of its environment
// variables that is not empty, else the default. Faults of all options are joined, each beginning with the flag or
// variable that it came from, so that a user repairs a faulty command in one go. Nothing is changed before all is read:
// targets are written only when there is no fault at all.
//
// The package does not open, read or create anything but what a parser is asked to check. A Set is not safe for
// concurrent use.
package conf

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrHelp is returned by Parse when -h or --help was given. The program prints Usage and exits with success.
var ErrHelp = errors.New("help requested")

// Option describes one setting.
type Option struct {
	// Flag is the name without dashes. Required.
	Flag string
	// Env names the environment variables that are read when the flag is absent, in order. An empty value counts as
	// not set: Kubernetes manifests often pass optional settings that way. Optional.
	Env []string
	// Usage is one line about what it sets, with the unit. Required.
	Usage string
	// Required refuses to start when neither flag nor variable is given.
	Required bool
	// Secret keeps the value out of Values and Usage.
	Secret bool
}

// Parser turns the text of a flag or variable into a value. Its error need not repeat the text.
type Parser[T any] func(text string) (T, error)

// Set is the settings of one program.
type Set struct {
	program string
	lookup  func(string) (string, bool)
	options []*option
	byFlag  map[string]*option
	checks  []check
}

// option is an Option bound to its target.
type option struct {
	Option
	bool     bool
	fallback string
	parse    func(text string) error // parses into a value that commit writes
	commit   func()
	show     func() string
	source   string // "--flag", "$VAR" or "" for the default
	given    bool
}

type check struct {
	flag string
	fn   func() error
}

// New returns an empty set for the program of that name. Lookup reads an environment variable; programs pass
// os.LookupEnv.
func New(program string, lookup func(string) (string, bool)) *Set {
	return &Set{program: program, lookup: lookup, byFlag: make(map[string]*option)}
}

// Add declares an option that is written to target. The value of *target is the default. It panics when the declaration
// itself is wrong (no name, name taken), which is a programmer's error that every start would show.
func Add[T any](s *Set, target *T, parse Parser[T], o Option) {
	mustBeNew(s, o)
	_, isBool := any(target).(*bool)
	opt := &option{Option: o, bool: isBool, fallback: format(*target)}
	opt.show = func() string { return format(*target) }
	opt.parse = func(text string) error {
		value, err := parse(text)
		if err != nil {
			return err
		}
		opt.commit = func() { *target = value }
		return nil
	}
	s.options = append(s.options, opt)
	s.byFlag[o.Flag] = opt
}

// mustBeNew panics when an option without name or usage, or with a name that is taken, is declared.
func mustBeNew(s *Set, o Option) {
	if o.Flag == "" || o.Usage == "" || s.byFlag[o.Flag] != nil {
		panic(fmt.Sprintf("conf: option %q has no name, no usage or is declared twice", o.Flag))
	}
}

// Check adds a test of the settings as a whole; its error is reported as a fault of the flag. Checks run in Parse after
// every option was read without fault and written to its target.
func (s *Set) Check(flag string, fn func() error) {
	s.checks = append(s.checks, check{flag: flag, fn: fn})
}

// Fault is one thing that is wrong with the settings.
type Fault struct {
	// Where is the flag ("--node") or the environment variable ("$NODE_NAME") at fault.
	Where string
	Cause error
}

func (f *Fault) Error() string { return f.Where + ": " + f.Cause.Error() }

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Cause }

// Parse reads the arguments (without the program's name) and the environment. It returns ErrHelp, nil, or all faults
// joined, each a *Fault. Flags are written --name=value, --name value or -name; a boolean one needs no value.
func (s *Set) Parse(args []string) error {
	faults, help := s.parseArgs(args)
	if help {
		return ErrHelp
	}
	for _, o := range s.options {
		if o.given {
			continue
		}
		if err := s.parseEnv(o); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	for _, o := range s.options {
		if o.commit != nil {
			o.commit()
		}
	}
	for _, c := range s.checks {
		if err := c.fn(); err != nil {
			faults = append(faults, &Fault{Where: s.where(c.flag), Cause: err})
		}
	}
	return errors.Join(faults...)
}

func (s *Set) parseArgs(args []string) (faults []error, help bool) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		if name == arg || name == "" {
			faults = append(faults, &Fault{Where: arg, Cause: errors.New("unexpected argument: every setting is a flag")})
			continue
		}
		name, value, hasValue := strings.Cut(name, "=")
		if name == "h" || name == "help" {
			return nil, true
		}
		o := s.byFlag[name]
		switch {
		case o == nil:
			faults = append(faults, &Fault{Where: "--" + name, Cause: s.unknown(name)})
			// Its value, if it was meant to have one, is no argument of its own.
			if !hasValue && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
				args = args[1:]
			}
			continue
		case hasValue:
		case o.bool:
			value = "true"
		case len(args) == 0:
			faults = append(faults, &Fault{Where: "--" + name, Cause: errors.New("a value is missing")})
			o.given = true
			continue
		default:
			value, args = args[0], args[1:]
		}
		if o.given {
			faults = append(faults, &Fault{Where: "--" + name, Cause: errors.New("given more than once")})
			continue
		}
		o.given, o.source = true, "--"+name
		if err := o.parse(value); err != nil {
			faults = append(faults, &Fault{Where: o.source, Cause: describe(o, value, err)})
		}
	}
	return faults, false
}

func (s *Set) parseEnv(o *option) error {
	for _, name := range o.Env {
		value, ok := s.lookup(name)
		if !ok || value == "" {
			continue
		}
		o.given, o.source = true, "$"+name
		if err := o.parse(value); err != nil {
			return &Fault{Where: o.source, Cause: describe(o, value, err)}
		}
		return nil
	}
	if !o.Required {
		return nil
	}
	cause := errors.New("required")
	if len(o.Env) > 0 {
		cause = fmt.Errorf("required (or environment variable %s)", strings.Join(o.Env, ", "))
	}
	return &Fault{Where: "--" + o.Flag, Cause: cause}
}

// describe adds the faulty text to the parser's error unless it is a secret.
func describe(o *option, value string, err error) error {
	if o.Secret {
		return err
	}
	return fmt.Errorf("%s: %w", shown(value), err)
}

// maxShown is how many characters of a faulty text are repeated.
const maxShown = 40

// shown is a faulty text for the log. A long one, or one of several lines, is only measured: a variable may hold a key or a
// token where a file's name was meant. Paths are repeated, however long.
func shown(text string) string {
	n := utf8.RuneCountInString(text)
	if strings.ContainsAny(text, "\r\n") || n > maxShown && !strings.HasPrefix(text, "/") {
		return fmt.Sprintf("a text of %d characters", n)
	}
	return strconv.Quote(text)
}

// where names the place that the option of the flag was set from.
func (s *Set) where(flag string) string {
	if o := s.byFlag[flag]; o != nil && o.source != "" {
		return o.source
	}
	return "--" + flag
}

// unknown says so, and names a flag that was probably meant.
func (s *Set) unknown(name string) error {
	best, distance := "", len(name)/2+1
	for _, o := range s.options {
		if d := editDistance(name, o.Flag); d < distance {
			best, distance = o.Flag, d
		}
	}
	if best == "" {
		return errors.New("unknown flag")
	}
	return fmt.Errorf("unknown flag; did you mean --%s?", best)
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
