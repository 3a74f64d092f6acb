#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time, one after the other.
set -euo pipefail
fuzztime=${1:-10s}

targets=$(git ls-files --cached --others --exclude-standard '*_test.go' | grep -v '/testdata/' |
  { xargs -r grep -oE '^func Fuzz[A-Za-z0-9_]+\(' /dev/null || true; } | sed -E 's/:func /\t/; s/\($//' | sort -u)
[ -n "$targets" ] || { echo "no fuzz targets"; exit 0; }

ran=0
failed=()
while IFS=$'\t' read -r file name; do
  pkg=./$(dirname "$file")
  echo "fuzz $pkg $name for $fuzztime"
  go test -run='^$' -fuzz="^${name}\$" -fuzztime="$fuzztime" "$pkg" || failed+=("$pkg $name")
  ran=$((ran + 1))
done <<<"$targets"

echo "$ran fuzz targets ran for $fuzztime each, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }
