package inspect

import "slices"

// Level says how bad a finding is.
type Level string

// The levels, from none to worst.
const (
	OK      Level = "ok"
	Note    Level = "note"    // nothing to do, good to know
	Warning Level = "warning" // works, but not as narrow or as well as it could
	Wrong   Level = "error"   // does not work
)

// Finding is one thing that was found.
type Finding struct {
	Level Level  `json:"level"`
	About string `json:"about"` // node n1, DaemonSet culvert-node, …
	Text  string `json:"text"`
	// Names are whom it is true of, if they are many, sorted.
	Names []string `json:"names,omitempty"`
}

// Failed reports whether something does not work.
func Failed(all []Finding) bool {
	return slices.ContainsFunc(all, func(f Finding) bool { return f.Level == Wrong })
}

// list collects findings.
type list struct{ all []Finding }

func (l *list) add(level Level, about, text string) {
	l.all = append(l.all, Finding{Level: level, About: Clean(about), Text: Clean(text)})
}

// addOf adds what is true of several.
func (l *list) addOf(level Level, about, text string, names []string) {
	clean := make([]string, len(names))
	for i, name := range names {
		clean[i] = Clean(name)
	}
	l.add(level, about, text)
	l.all[len(l.all)-1].Names = clean
}
