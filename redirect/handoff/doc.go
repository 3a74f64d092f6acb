// Package handoff is how somebody who knows of a pod's network namespace (the CNI
// plugin, a tool, a test) gives it to the agent of the node, and takes it back.
//
// # Protocol
//
// A Unix socket of type SOCK_SEQPACKET: one message is one packet, so nothing is
// framed. A message is a JSON object of at most MaxRequest (to the agent) or
// MaxResponse bytes. The client asks, the agent answers each request once, in
// order; only a list may take several answers, all but the last with "more": true.
//
//	{"v":1,"op":"add","pod":{"uid":U,"name":N,"namespace":NS,"serviceAccount":SA}}   with the namespace in SCM_RIGHTS
//	{"v":1,"op":"remove","uid":U}
//	{"v":1,"op":"list"}
//	{"v":1,"op":"cni-add","pod":{"namespace":NS,"name":N,"uid":U},"addresses":[A,…]}           with the namespace in SCM_RIGHTS
//	{"v":1,"op":"cni-check","pod":{"namespace":NS,"name":N,"uid":U},"addresses":[A,…]}         with the namespace in SCM_RIGHTS
//	{"v":1,"op":"cni-del","pod":{"namespace":NS,"name":N,"uid":U}}                             with the namespace, if it is still there
//	{"v":1,"op":"cni-status"}
//	{"v":1}    {"v":1,"error":TEXT}    {"v":1,"pods":[{"pod":{…},"state":S,"netns":INODE,"error":TEXT},…],"more":true}
//	{"v":1,"enrolled":true}
//
// The answer to add comes when the pod is enrolled or has failed to be; the agent
// goes on trying after a failure, until it is removed. A request of another version
// is answered by an error that names both. Members that a side does not know are
// ignored, so adding some needs no new version.
//
// The cni- operations are those of the CNI plugin, which knows neither labels nor
// service account: the agent decides whether the pod is to be enrolled, and says so.
// They are served where the Handler is a CNIHandler or CNIStateHandler, too.
//
// # Several servers
//
// During an upgrade two agents may run on a node. The one that started last takes the
// path, in one step and, if it is Patient, not before it is ready; when it ends while the
// other still serves, that one takes it back.
//
// # Trust
//
// Whoever may add a namespace decides which identity its traffic has. The socket has
// mode 0600 in a directory of mode 0700, and the peer's uid (SO_PEERCRED) must be
// allowed besides. Still every byte and descriptor is checked: add, cni-add and
// cni-check want exactly one descriptor, of a network namespace, cni-del at most one,
// and the others none.
//
// The package leaves to its Handler what enrolling is. Server and Client are safe
// for concurrent use; a Client sends one request at a time.
package handoff
