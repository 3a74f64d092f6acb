// The SPIRE that the cluster's tests run against, built by build.sh. It is not tidied: nothing imports it.
module github.com/culvert-mesh/culvert/e2e/cluster/spire

go 1.26.6

require github.com/spiffe/spire v1.15.3
