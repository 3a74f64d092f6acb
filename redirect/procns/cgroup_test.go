package procns

import (
	"strings"
	"testing"
)

const (
	uidA    = "0b7c5c3e-8a1f-4b51-9d2e-6f0e1a2b3c4d"
	uidB    = "ffffffff-8a1f-4b51-9d2e-6f0e1a2b3c4d"
	static  = "3c9a2f6d1b8e4750a1b2c3d4e5f60718"
	id      = "4f1d0c2b3a49586776859403120f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d"
	underA  = "0b7c5c3e_8a1f_4b51_9d2e_6f0e1a2b3c4d"
	v1Lines = "12:pids:/kubepods/burstable/pod" + uidA + "/" + id + "\n11:memory:/kubepods/burstable/pod" + uidA + "/" + id + "\n0::/\n"
)

// lines are what real nodes show.
var lines = []struct {
	name, text, uid string
}{
	{"v1_cgroupfs", v1Lines, uidA},
	{"v1_cgroupfs_guaranteed", "4:cpu,cpuacct:/kubepods/pod" + uidA + "/" + id + "\n", uidA},
	{"v1_own_root", "4:cpu,cpuacct:/node2/kubepods/besteffort/pod" + uidA + "/" + id + "\n", uidA},
	{"v2_systemd_containerd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + underA + ".slice/cri-containerd-" + id + ".scope\n", uidA},
	{"v2_systemd_guaranteed", "0::/kubepods.slice/kubepods-pod" + underA + ".slice/cri-containerd-" + id + ".scope\n", uidA},
	{"v2_systemd_crio", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + underA + ".slice/crio-" + id + ".scope\n", uidA},
	{"v2_crio_container", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + underA + ".slice/crio-" + id + ".scope/container\n", uidA},
	{"v2_systemd_docker", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + underA + ".slice/docker-" + id + ".scope\n", uidA},
	{"v1_docker_cgroupfs", "3:cpuset:/kubepods/besteffort/pod" + uidA + "/" + id + "\n", uidA},
	{"v2_kind", "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + underA + ".slice/cri-containerd-" + id + ".scope\n", uidA},
	{"v1_kind_in_docker", "1:name=systemd:/docker/" + id + "/kubelet/kubepods/besteffort/pod" + uidA + "/" + id + "\n", uidA},
	{"containerd_colons", "9:memory:/system.slice/containerd.service/kubepods-burstable-pod" + underA + ".slice:cri-containerd:" + id + "\n", uidA},
	{"static_pod", "0::/kubepods/burstable/pod" + static + "/" + id + "\n", static},
	{"static_pod_systemd", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/cri-containerd-" + id + ".scope\n", static},
	{"reader_is_beside", "0::/../../pod" + uidA + "/" + id + "\n", uidA},
	{"reader_is_beside_systemd", "0::/../../kubepods-besteffort-pod" + underA + ".slice/cri-containerd-" + id + ".scope\n", uidA},
	{"systemd_in_pod", "0::/kubepods/burstable/pod" + uidA + "/" + id + "/system.slice/sshd.service\n", uidA},

	{"empty", "", ""},
	{"host", "0::/init.scope\n", ""},
	{"service", "0::/system.slice/kubelet.service\n", ""},
	{"crio_without_uid", "0::/crio/crio-" + id + "\n", ""},
	{"docker_without_pod", "0::/system.slice/docker-" + id + ".scope\n", ""},
	{"pod_without_container", "0::/kubepods/burstable/pod" + uidA + "\n", ""},
	{"pod_slice_without_container", "0::/kubepods.slice/kubepods-pod" + underA + ".slice\n", ""},
	{"container_of_word", "0::/kubepods/burstable/pod" + uidA + "/mine\n", ""},
	{"short_uid", "0::/kubepods/burstable/pod0b7c5c3e/" + id + "\n", ""},
	{"uid_not_hex", "0::/kubepods/burstable/pod" + strings.ReplaceAll(uidA, "0b", "zz") + "/" + id + "\n", ""},
	{"slice_of_others", "0::/user.slice/my-pod" + underA + ".slice/cri-containerd-" + id + ".scope\n", ""},
	{"not_a_line", "kubepods/pod" + uidA + "/" + id + "\n", ""},
	{"two_lines_differ", "2:cpu:/kubepods/pod" + uidA + "/" + id + "\n1:pids:/kubepods/pod" + uidB + "/" + id + "\n", ""},
	{"nested_cluster", "0::/kubepods/pod" + uidA + "/" + id + "/kubepods/pod" + uidB + "/" + id + "\n", ""},
}

func TestPodUID(t *testing.T) {
	for _, tt := range lines {
		t.Run(tt.name, func(t *testing.T) {
			uid, ok := podUID(tt.text)
			if uid != tt.uid && ok || ok != (tt.uid != "") {
				t.Errorf("podUID = %q, %v, want %q", uid, ok, tt.uid)
			}
		})
	}
}

// What is found is a UID in the form of the API, is in the text, and stays the same
// beside lines that name no pod.
func FuzzPodUID(f *testing.F) {
	for _, l := range lines {
		f.Add(l.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		uid, ok := podUID(text)
		if !ok {
			return
		}
		if normalUID(uid) != uid || !strings.Contains(strings.ReplaceAll(text, "_", "-"), uid) {
			t.Fatalf("podUID(%q) = %q", text, uid)
		}
		if again, ok := podUID("0::/init.scope\n" + text); !ok || again != uid {
			t.Fatalf("beside another line: %q, %v, alone %q", again, ok, uid)
		}
	})
}

func TestStartTime(t *testing.T) {
	tests := []struct {
		name, stat string
		want       uint64
		ok         bool
	}{
		{"plain", "17 (sleep) S 1 17 17 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 884422 5 1 2", 884422, true},
		{"parentheses", "17 (a) S (b) 1) S 1 17 17 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 7 5 1 2", 7, true},
		{"short", "17 (sleep) S 1", 0, false},
		{"empty", "", 0, false},
		{"words", "17 (sleep) S" + strings.Repeat(" x", 30), 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := startTime(tt.stat)
			if got != tt.want || (err == nil) != tt.ok {
				t.Errorf("startTime = %d, %v", got, err)
			}
		})
	}
}

func FuzzStartTime(f *testing.F) {
	f.Add("17 (a) S (b) 1) S 1 17 17 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 7 5 1 2")
	f.Fuzz(func(_ *testing.T, stat string) { _, _ = startTime(stat) })
}
