#!/usr/bin/env bash
# Writes a container image (OCI image layout in a tar file) that holds the given static binaries and nothing else.
# The same binaries give the same bytes. Usage: image.sh OUT.tar VERSION BINARY...
set -euo pipefail
umask 022 # the same modes in every image
out=$1 version=$2
shift 2
[ $# -gt 0 ] || { echo "image: no binaries given" >&2; exit 1; }

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/root/usr/local/bin" "$dir/oci/blobs/sha256"

for binary in "$@"; do
  install -m 0755 "$binary" "$dir/root/usr/local/bin/"
done
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$dir/root" -cf "$dir/layer.tar" usr
diff_id=$(sha256sum <"$dir/layer.tar" | cut -d' ' -f1)
gzip -n "$dir/layer.tar"

# blob FILE: moves the file among the blobs; sets digest and size.
blob() {
  digest=$(sha256sum <"$1" | cut -d' ' -f1)
  size=$(stat -c %s "$1")
  mv "$1" "$dir/oci/blobs/sha256/$digest"
}

blob "$dir/layer.tar.gz"
layer="{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$digest\",\"size\":$size}"

arch=$(go env GOARCH)
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/bin"],"Entrypoint":["/usr/local/bin/culvert-node"],"Labels":{"org.opencontainers.image.title":"culvert","org.opencontainers.image.version":"%s","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$arch" "$version" "$diff_id" >"$dir/config.json"
blob "$dir/config.json"
config="{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size}"

printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
  "$config" "$layer" >"$dir/manifest.json"
blob "$dir/manifest.json"

printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"culvert:%s"},"platform":{"architecture":"%s","os":"linux"}}]}' \
  "$digest" "$size" "$version" "$arch" >"$dir/oci/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/oci/oci-layout"

mkdir -p "$(dirname "$out")"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$dir/oci" -cf "$out" .
echo "wrote $out: culvert:$version, $(stat -c %s "$out") bytes, sha256:$digest"
