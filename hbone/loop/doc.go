// Package loop runs sockets on event loops: each Loop is one locked OS thread with an epoll instance of its own.
//
// A socket that is handed to a loop (FD.Attach) belongs to it alone until FD.Close or FD.Detach: its events, its timers
// and all code that touches it run on the loop's thread, one call at a time, so nothing on the way of a byte is locked.
// Other goroutines reach a loop only through Loop.Post. Everything whose doc comment says "on the loop" must be called
// from code that the loop itself called.
//
// It is the only package that knows epoll and raw system calls. It knows no protocol.
package loop
