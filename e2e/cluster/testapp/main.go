// testapp is both ends of the traffic of the cluster tests. As a pod's program it serves HTTP, a TCP echo and gRPC health
// checks; executed inside a pod it is a client that prints one JSON object.
//
//	testapp serve [--http :8080,:8081] [--echo :9000] [--grpc :9090]
//	testapp get [--count 1] [--timeout 5s] URL         HTTP requests on one connection each
//	testapp talk [--bytes 1024] [--from ADDR] ADDR     one TCP connection, echoed and compared
//	testapp hold [--conns 1] ADDR                      connections that talk until the standard input ends
//	testapp load URL                                   requests on new connections until the standard input ends
//	testapp resolve NAME                               addresses of a name
//	testapp probe                                      tables of which addresses answer, for lists from the standard input
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "testapp: no command")
		os.Exit(2)
	}
	commands := map[string]func([]string) (any, error){
		"serve": serve, "get": get, "talk": talk, "hold": hold, "load": load, "resolve": resolve, "probe": probe,
	}
	command, ok := commands[os.Args[1]]
	if !ok {
		fmt.Fprintf(os.Stderr, "testapp: unknown command %q\n", os.Args[1])
		os.Exit(2)
	}
	result, err := command(os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testapp:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		os.Exit(1)
	}
}
