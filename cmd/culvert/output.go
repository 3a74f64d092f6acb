package main

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
)

// checkOutput refuses a value of --output that is none of the command's formats.
func checkOutput(output string, formats ...string) error {
	if slices.Contains(formats, output) {
		return nil
	}
	last := len(formats) - 1
	return misused("--output=%s: want %s or %s", output, strings.Join(formats[:last], ", "), formats[last])
}

func writeJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
