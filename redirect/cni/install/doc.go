// Package install puts the CNI plugin onto a node, keeps it there and takes it away.
//
// What is there: the plugin's binary in the runtime's directory of plugins; one entry
// at the end of the chain in the configuration that the runtime uses, which is the
// first one by name; and the file by which the plugin reaches the API server while
// the agent is away.
//
// # How files are changed
//
// A configuration belongs to somebody else. It is changed by inserting or cutting one
// element as text, so that order, unknown members and white space stay, and cutting
// gives back the same bytes. The new file is written beside, synced, and exchanged
// with the old one in one step (renameat2); if what comes out is not what was read,
// another program was faster, and the exchange is undone. A process that is killed, a
// full disk or a read-only directory at any point leave the old file or the new one.
//
//	10-net.conflist   entry inserted
//	10-net.conf       kept as 10-net.conf.culvert-saved; 10-net.conflist is made of it
//
// Entries in files that are no longer the first stay, for the day when they are again.
//
// # Several installers
//
// During an upgrade two agents may run on a node. The one that started last owns the
// installation, and holds a lock as long as it runs; the other sees that and changes
// nothing more. When the owner ends first (the upgrade was rolled back, or it was
// killed), the other takes the installation back; on a file system without locks it
// does not.
//
// The package runs no plugin and knows nothing of pods. An Installer's methods are
// safe for concurrent use, but Uninstall has to wait until Run has returned.
package install
