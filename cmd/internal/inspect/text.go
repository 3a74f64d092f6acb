package inspect

import (
	"strings"
	"unicode"
)

// maxText bounds one piece of foreign text.
const maxText = 500

// Clean makes foreign text fit for a terminal: one line of bounded length without control characters.
func Clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) && r != ' ' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return strings.TrimSpace(text)
}
