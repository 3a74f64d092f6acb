package procns

import (
	"strings"
)

// minContainerID is the least length of a container's identifier: containerd, CRI-O
// and dockerd use 64 hexadecimal digits.
const minContainerID = 32

// podUID returns the UID of the pod that a process belongs to by the text of its
// /proc/PID/cgroup, in the form that the API shows (dashes, no underscores). It is
// false where no line names a pod, and where lines or parts of one line name
// different pods: a container that manages control groups of its own can make any
// path below its own one, so what contradicts itself proves nothing.
func podUID(text string) (string, bool) {
	found := ""
	for line := range strings.Lines(text) {
		uid, ok := lineUID(strings.TrimSuffix(line, "\n"))
		switch {
		case !ok:
			return "", false
		case uid == "" || uid == found:
		case found != "":
			return "", false
		default:
			found = uid
		}
	}
	return found, found != ""
}

// lineUID reads one line, "HIERARCHY:CONTROLLERS:PATH" (cgroups(7)). The path is as
// the reader's own control group namespace shows it, so it may begin with "/..", and
// what is above the pod may be missing. The UID is empty where the line names no pod;
// false means that it names more than one.
func lineUID(line string) (string, bool) {
	_, rest, ok := strings.Cut(line, ":")
	if !ok {
		return "", true
	}
	_, path, ok := strings.Cut(rest, ":")
	if !ok {
		return "", true
	}
	found := ""
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		next := ""
		if i+1 < len(segments) {
			next = segments[i+1]
		}
		uid := segmentUID(segment, next)
		if uid == "" || uid == found {
			continue
		}
		if found != "" {
			return "", false
		}
		found = uid
	}
	return found, true
}

// segmentUID returns the UID of a pod that a segment of a path names, where a
// container follows it:
//
//	pod<uid>/<id>                                                 cgroupfs driver
//	kubepods-burstable-pod<uid_>.slice/cri-containerd-<id>.scope  systemd driver; crio-, docker-, nerdctl-
//	kubepods-burstable-pod<uid_>.slice:cri-containerd:<id>        containerd with cgroupfs under systemd's names
func segmentUID(segment, next string) string {
	if slice, rest, ok := strings.Cut(segment, ".slice:"); ok {
		_, id, _ := strings.Cut(rest, ":")
		if !isContainerID(id) {
			return ""
		}
		return sliceUID(slice)
	}
	if !isContainer(next) {
		return ""
	}
	if slice, ok := strings.CutSuffix(segment, ".slice"); ok {
		return sliceUID(slice)
	}
	if uid, ok := strings.CutPrefix(segment, "pod"); ok {
		return normalUID(uid)
	}
	return ""
}

// sliceUID takes the UID out of the name of a pod's slice: systemd separates levels
// by dashes, so the kubelet writes the UID with underscores.
func sliceUID(name string) string {
	i := strings.LastIndex(name, "-pod")
	if i < 0 || !strings.Contains(name[:i], "kubepods") {
		return ""
	}
	return normalUID(name[i+len("-pod"):])
}

// isContainer reports whether a segment is that of a container: "<id>", or
// "<runtime>-<id>.scope".
func isContainer(segment string) bool {
	segment = strings.TrimSuffix(segment, ".scope")
	return isContainerID(segment[strings.LastIndex(segment, "-")+1:])
}

func isContainerID(id string) bool {
	return len(id) >= minContainerID && onlyHex(id)
}

// normalUID checks and normalises a UID: 8-4-4-4-12 hexadecimal digits, or 32 without
// separators, which is that of a static pod. It is empty for anything else.
func normalUID(uid string) string {
	uid = strings.ReplaceAll(uid, "_", "-")
	parts := strings.Split(uid, "-")
	switch len(parts) {
	case 1:
		if len(uid) != 32 || !onlyHex(uid) {
			return ""
		}
	case 5:
		for i, want := range [5]int{8, 4, 4, 4, 12} {
			if len(parts[i]) != want || !onlyHex(parts[i]) {
				return ""
			}
		}
	default:
		return ""
	}
	return uid
}

func onlyHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
