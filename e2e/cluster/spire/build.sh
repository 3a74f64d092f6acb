#!/usr/bin/env bash
# Builds spire-server and spire-agent into a directory: build.sh DIR. The version is that of go.mod, which go.sum pins, and its
# dependencies are those of its own go.sum.
#
# Only the plugins that the tests configure are built in. The others (clouds, HSMs, other databases' proxies) bring two thirds of
# the code to compile, and the client library of one, ejbca, is not to be had from the module proxy. All else is as released.
set -euo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

go mod download github.com/spiffe/spire
source=$(go list -m -f '{{.Dir}}' github.com/spiffe/spire)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$source"/. "$work"
chmod -R u+w "$work"
cd "$work"

# A built-in plugin is a line that imports it and a line that lists it.
without() {
  local file=$1 plugin
  shift
  for plugin in "$@"; do
    sed -i "/\b$plugin\b/d" "$file"
  done
}
without pkg/server/catalog/bundlepublisher.go awsrolesanywhere awss3 azureblob gcpcloudstorage k8sconfigmap
without pkg/server/catalog/keymanager.go awskms azurekeyvault gcpkms hashicorpvault
without pkg/server/catalog/nodeattestor.go awsiid azureimds azuremsi gcpiit httpchallenge k8spsat sshpop tpmdevid x509pop
without pkg/server/catalog/notifier.go gcsbundle k8sbundle
without pkg/server/catalog/upstreamauthority.go awspca awssecret certmanager ejbca gcpcas spireplugin vault
without pkg/agent/catalog/nodeattestor.go awsiid azureimds azuremsi gcpiit httpchallenge k8spsat sshpop tpmdevid x509pop
without pkg/agent/catalog/svidstore.go awssecretsmanager gcpsecretmanager
without pkg/agent/catalog/workloadattestor.go docker k8s slurm systemd windows
without pkg/server/datastore/sqlstore/mysql.go cloudsql-proxy
without pkg/server/datastore/sqlstore/postgres.go cloudsql-proxy

# The server's database is SQLite, which is C; ten entries do not want it fast.
CGO_ENABLED=1 CGO_CFLAGS="-O0 -w" go build -trimpath -ldflags '-s -w' -o "$out/" ./cmd/spire-server ./cmd/spire-agent
