package kube

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const (
	benchPods     = 10_000
	benchServices = 1_000
)

// benchObjects returns trimmed namespaces, services and pods, ten pods of each
// service, in 20 namespaces.
func benchObjects(w *world) (objects []change) {
	add := func(o any) {
		k, trimmed := w.trimAny(o)
		objects = append(objects, change{ref{k, trimmed.head().key}, trimmed})
	}
	for i := range 20 {
		add(namespace(fmt.Sprint("ns", i)))
	}
	for i := range benchServices {
		add(service(fmt.Sprint("svc", i), []string{fmt.Sprintf("10.200.%d.%d", i/250, i%250+1)}, func(s *corev1.Service) {
			s.Namespace = fmt.Sprint("ns", i%20)
			s.Spec.Selector = map[string]string{"app": s.Name}
		}))
	}
	for i := range benchPods {
		add(benchPod(i))
	}
	return objects
}

func benchPod(i int, mods ...func(*corev1.Pod)) *corev1.Pod {
	svc := i % benchServices
	return pod(fmt.Sprintf("svc%d-5d4f7c9b8-%05d", svc, i), []string{fmt.Sprintf("10.%d.%d.%d", 1+i/62500, i/250%250, i%250+1)}, append([]func(*corev1.Pod){func(p *corev1.Pod) {
		p.Namespace = fmt.Sprint("ns", svc%20)
		p.Spec.NodeName = fmt.Sprint("node", i%100)
		p.Labels = map[string]string{"app": fmt.Sprint("svc", svc), "pod-template-hash": "5d4f7c9b8", "version": "v1", "app.kubernetes.io/part-of": "shop"}
	}, enrolled}, mods...)...)
}

func BenchmarkFullSync(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b)
		objects := benchObjects(w)
		b.StartTimer()
		for _, c := range objects {
			w.st.apply(c)
		}
		w.flush()
		if n := w.store.Snapshot().WorkloadCount(); n != benchPods {
			b.Fatal(n)
		}
	}
}

// BenchmarkOneChange is one pod that becomes ready or not.
func BenchmarkOneChange(b *testing.B) {
	w := newWorld(b)
	for _, c := range benchObjects(w) {
		w.st.apply(c)
	}
	w.flush()
	var states [2]change
	for i := range states {
		_, o := w.trimAny(benchPod(7, func(p *corev1.Pod) {
			if i == 1 {
				p.Status.Conditions = nil
			}
		}))
		states[i] = change{ref{kindPod, o.head().key}, o}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		w.st.apply(states[i%2])
		w.flush()
		if len(w.last.events) != 1 {
			b.Fatalf("%d events", len(w.last.events))
		}
	}
}

// BenchmarkMemory reports what 100,000 pods hold in the source alone.
func BenchmarkMemory(b *testing.B) {
	const n = 100_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		w := newWorld(b)
		before := heap()
		for i := range n {
			k, o := w.trimAny(benchPod(i))
			w.st.apply(change{ref{k, o.head().key}, o})
		}
		clear(w.st.dirty)
		b.ReportMetric(float64(heap()-before)/n, "B/pod")
		runtime.KeepAlive(w)
	}
}
