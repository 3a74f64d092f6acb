package conf

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Value is one setting as it is in force.
type Value struct {
	Flag   string `json:"flag"`
	Value  string `json:"value"`
	Source string `json:"source"` // "--flag", "$VARIABLE" or "default"
}

// Values returns all settings in the order of their declaration, secrets blanked, for logs and dumps.
func (s *Set) Values() []Value {
	values := make([]Value, 0, len(s.options))
	for _, o := range s.options {
		v := Value{Flag: o.Flag, Value: o.show(), Source: o.source}
		if v.Source == "" {
			v.Source = "default"
		}
		if o.Secret && v.Value != "" {
			v.Value = "(secret)"
		}
		values = append(values, v)
	}
	return values
}

// Usage writes the list of options with their defaults and variables, sorted by name.
func (s *Set) Usage(w io.Writer) {
	fmt.Fprintf(w, "usage: %s [--flag=value ...]\n\n", s.program)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	options := slices.SortedFunc(slices.Values(s.options), func(a, b *option) int { return strings.Compare(a.Flag, b.Flag) })
	for _, o := range options {
		notes := make([]string, 0, 3)
		switch {
		case o.Required:
			notes = append(notes, "required")
		case o.fallback != "" && !o.Secret && o.fallback != "false" && o.fallback != "0s":
			notes = append(notes, "default "+o.fallback)
		}
		if len(o.Env) > 0 {
			notes = append(notes, "$"+strings.Join(o.Env, ", $"))
		}
		text := o.Usage
		if len(notes) > 0 {
			text += " (" + strings.Join(notes, "; ") + ")"
		}
		fmt.Fprintf(tw, "  --%s\t%s\n", o.Flag, text)
	}
	tw.Flush() //nolint:errcheck // there is nothing to do about a help text that cannot be printed
}

// duration writes 24h, not 24h0m0s.
func duration(d time.Duration) string {
	text := d.String()
	if short, whole := strings.CutSuffix(text, "m0s"); whole {
		text = short + "m"
	}
	if short, whole := strings.CutSuffix(text, "h0m"); whole {
		text = short + "h"
	}
	return text
}

func format(value any) string {
	switch v := value.(type) {
	case time.Duration:
		return duration(v)
	case fmt.Stringer:
		return v.String()
	}
	if v := reflect.ValueOf(value); v.Kind() == reflect.Slice {
		texts := make([]string, v.Len())
		for i := range texts {
			texts[i] = format(v.Index(i).Interface())
		}
		return strings.Join(texts, ",")
	}
	return fmt.Sprint(value)
}
