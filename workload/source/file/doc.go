// Package file reads workloads, services and policies from a YAML file, in the
// schema of ztunnel's local configuration, and follows its changes. A service may
// have one key more, sessionAffinity, with a time such as 3h, and the file a list
// networkPolicies of {policy: ...}, {namespace: ...}, {pod: ...} and {node: ...},
// as workload/netpol/netpolpb describes them and protobuf writes them in JSON.
//
// Decode and Encode are pure. A Source keeps a Store and a policy Set equal to
// the file: a faulty file is refused as a whole, with file, line and reason,
// and the last good state stays. What to do with workloads and policies is
// theirs and their readers' business.
//
// Concurrency: Decode, Encode and Load may be called at any time. A Source
// runs once; its other methods may be called by several goroutines.
package file
