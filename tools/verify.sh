#!/usr/bin/env bash
# What must be clean before a change lands. Prints each step; stops at the first that is not.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '== %s\n' "$*"; }
fail() { printf 'verify: %s\n' "$*" >&2; exit 1; }
tree() { git diff HEAD -- . 2>/dev/null | sha256sum; git status --porcelain --untracked-files=all | sha256sum; }

step "format: gofmt"
unformatted=$(git ls-files --cached --others --exclude-standard -z '*.go' | xargs -0 -r sh -c 'for f; do [ -e "$f" ] && echo "$f"; done' sh | xargs -r gofmt -l)
[ -z "$unformatted" ] || fail "not gofmt-ed: $unformatted"

step "modules: go mod tidy, go mod verify"
for module in . e2e/netpol; do # the second is built on the first
  go -C "$module" mod tidy -diff || fail "$module/go.mod is not tidy"
done
go mod verify >/dev/null || fail "a module differs from go.sum"

step "generated files"
before=$(tree)
go generate ./...
[ "$before" = "$(tree)" ] || fail "go generate changed the tree: commit what it writes"

step "vet"
go vet ./...
go -C e2e/netpol vet ./...

step "build for arm64"
GOARCH=arm64 CGO_ENABLED=0 go build ./...

step "import table and house rules"
go test -count=1 ./e2e/arch

step "scripts"
for script in .ci/run tools/*.sh e2e/cluster/spire/build.sh; do
  bash -n "$script" || fail "$script does not parse"
  [ -x "$script" ] || fail "$script is not executable"
done
echo "verify: ok"
