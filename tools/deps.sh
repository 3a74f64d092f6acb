#!/usr/bin/env bash
# Makes sure that the programs which tests and benchmarks call are there. As root on Debian it installs what is missing;
# elsewhere it names it and leaves it to the tests, which skip with a reason. With the argument "cluster" it does the same
# for what the two-node Kubernetes of tests is made of.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# program, or file → Debian package. The race detector takes a C compiler and what it links to.
need=(nft:nftables conntrack:conntrack haproxy:haproxy nginx:nginx-light wrk:wrk iperf3:iperf3 openssl:openssl gcc:gcc
  /usr/include/stdlib.h:libc6-dev)
if [ "${1:-}" = cluster ]; then
  need=(etcd:etcd-server containerd:containerd runc:runc iptables:iptables conntrack:conntrack nft:nftables ip:iproute2 nsenter:util-linux
    sysctl:procps /usr/lib/cni/bridge:containernetworking-plugins)
fi

missing=()
for pair in "${need[@]}"; do
  command -v "${pair%%:*}" >/dev/null || [ -f "${pair%%:*}" ] || missing+=("${pair##*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing for some tests and benchmarks: ${missing[*]} (names of Debian packages)" >&2
  exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# The programs are wanted, not the services: keep packages from starting daemons on this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
