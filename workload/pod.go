package workload

import "strings"

// IsPod reports whether the workload is a pod, by its UID, which no user can
// choose: what users declare as a workload has the name of its kind there.
func (w *Workload) IsPod() bool { return strings.Contains(w.UID, "//Pod/") }
