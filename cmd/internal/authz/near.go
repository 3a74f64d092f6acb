package authz

import (
	"slices"
)

// nearest returns the known name that a misspelt one most likely meant, or "".
func nearest(name string, known []string) string {
	best, distance := "", max(1, min(3, len(name)/3))+1
	for _, k := range slices.Sorted(slices.Values(known)) {
		if d := editDistance(name, k); d < distance && d < max(len(name), len(k)) {
			best, distance = k, d
		}
	}
	return best
}

// hint is what an error message says of the nearest name.
func hint(name string, known []string) string {
	if n := nearest(name, known); n != "" && n != name {
		return "; did you mean " + n + "?"
	}
	return ""
}

// editDistance counts the insertions, deletions, changes and swaps of neighbours that lead from a to b.
func editDistance(a, b string) int {
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		one[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			change := one[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, one[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], two[j-1]+1)
			}
		}
		two, one, row = one, row, two
	}
	return one[len(b)]
}
