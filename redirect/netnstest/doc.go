// Package netnstest gives tests private network namespaces of the real kernel.
//
// Nothing is ever done in the namespace that the test runs in: New makes an
// anonymous namespace, held only by a descriptor, so it and everything inside it
// (interfaces, rules, routes, connection tracking) are gone when the test ends,
// also when the test binary is killed. Main checks that after the run.
//
// Require skips a test, with the true reason, on a machine that cannot do this; in
// CI (environment variable CI=true) the same is a failure. Helpers take a
// testing.TB, fail it on error and register their own cleanup. They may be called
// from several tests at once, but only from the test's own goroutine.
package netnstest
