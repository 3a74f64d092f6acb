package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
	"github.com/culvert-mesh/culvert/cmd/internal/objects"
	"github.com/culvert-mesh/culvert/cmd/internal/yamltext"
)

func netpolFixCommand(connect connector) *cobra.Command {
	var apply bool
	cmd := &cobra.Command{
		Use:   "fix",
		Short: "Add what is missing in NetworkPolicies: print them patched, or write them",
		Long: `Add TCP 15008 to each rule of a NetworkPolicy that cuts HBONE; its peers stay as they are. Without --apply the patched
policies are printed, for kubectl apply -f -; with -f all of the files is, with nothing else changed, comments included. With
--apply they are written where they came from: to the cluster, or to the files.

A second run changes nothing. ClusterNetworkPolicies are not changed; check says what they lack.

The exit status is 1 when something is missing that was not added, 2 when something failed.`,
		Example: `  culvert netpol fix -n shop | kubectl diff -f -
  culvert netpol fix -n shop --apply
  culvert netpol fix -f manifests/ --apply`,
	}
	f := addNetpolFlags(cmd, connect)
	cmd.Flags().BoolVar(&apply, "apply", false, "write the policies where they came from")
	return withTrouble(cmd, func(cmd *cobra.Command, _ []string) error { return f.fix(cmd, apply) })
}

func (f *netpolFlags) fix(cmd *cobra.Command, apply bool) error {
	var found []netpolcheck.Finding
	var err error
	switch {
	case len(f.files) > 0:
		found, err = f.fixFiles(cmd, apply)
	case apply:
		found, err = f.fixCluster(cmd)
	default:
		found, err = f.printFixed(cmd)
	}
	if err != nil {
		return err
	}
	for i := range found {
		if x := &found[i]; x.Wrong() && (x.Policy == nil || len(x.Patch) == 0) {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s cannot be fixed here; culvert netpol check says what to do\n", inspect.Clean(x.About()))
			err = withStatus{exitWrong, errors.New("something is missing still")}
		}
	}
	return err
}

// fixed returns the object of a finding with what it lacks; nil when it lacks nothing that can be added.
func (in *netpolInput) fixed(f *netpolcheck.Finding) (*unstructured.Unstructured, error) {
	if f.Policy == nil || len(f.Patch) == 0 {
		return nil, nil
	}
	for _, s := range in.sources {
		if s.judged == any(f.Policy) {
			u := s.object.DeepCopy()
			return u, netpolcheck.Apply(u.Object, f.Patch)
		}
	}
	return nil, fmt.Errorf("%s was not read", f.About())
}

// printFixed prints the cluster's policies that lack something, patched.
func (f *netpolFlags) printFixed(cmd *cobra.Command) ([]netpolcheck.Finding, error) {
	in, _, err := f.load(cmd.Context(), cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	found := f.check(in)
	var out bytes.Buffer
	for i := range found {
		u, err := in.fixed(&found[i])
		if err != nil {
			return nil, err
		}
		if u == nil {
			continue
		}
		for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink"} {
			unstructured.RemoveNestedField(u.Object, "metadata", field)
		}
		unstructured.RemoveNestedField(u.Object, "status")
		unstructured.RemoveNestedField(u.Object, "metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration")
		text, err := yaml.Marshal(u.Object)
		if err != nil {
			return nil, err
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	_, err = cmd.OutOrStdout().Write(out.Bytes())
	return found, err
}

// maxRounds is how often policies that change meanwhile are looked at again.
const maxRounds = 5

// fixCluster patches the cluster's policies. One that changed since it was read refuses the patch and is judged again.
func (f *netpolFlags) fixCluster(cmd *cobra.Command) ([]netpolcheck.Finding, error) {
	for round := 1; ; round++ {
		in, a, err := f.load(cmd.Context(), cmd.InOrStdin())
		if err != nil {
			return nil, err
		}
		found, again := f.check(in), false
		for i := range found {
			if found[i].Policy == nil || len(found[i].Patch) == 0 {
				continue
			}
			err := patchPolicy(cmd.Context(), a, &found[i])
			switch {
			case err == nil:
				fmt.Fprintf(cmd.OutOrStdout(), "%s patched\n", inspect.Clean(found[i].About()))
			case round < maxRounds && (apierrors.IsInvalid(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err)):
				again = true
			default:
				return nil, fmt.Errorf("patch %s: %w", found[i].About(), a.Explain(err))
			}
		}
		if !again {
			return found, nil
		}
	}
}

func patchPolicy(ctx context.Context, a *access.Access, f *netpolcheck.Finding) error {
	patch, err := json.Marshal(f.Patch)
	if err != nil {
		return err
	}
	_, err = a.Kube.NetworkingV1().NetworkPolicies(f.Namespace).Patch(ctx, f.Name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: "culvert-netpol"})
	return err
}

// fixFiles patches the text of files, and prints it or writes it back.
func (f *netpolFlags) fixFiles(cmd *cobra.Command, apply bool) ([]netpolcheck.Finding, error) {
	texts, err := f.readTexts(cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	in := f.newInput()
	for _, t := range texts {
		if err := in.addDocuments(t.docs, f.kube.namespace()); err != nil {
			return nil, err
		}
	}
	found := f.check(in)
	patches := make(map[any][]netpolcheck.Operation)
	for i := range found {
		if found[i].Policy != nil {
			patches[found[i].Policy] = found[i].Patch
		}
	}
	next := 0 // of in.sources
	for i := range texts {
		t := &texts[i]
		var own [][]netpolcheck.Operation
		for _, d := range t.docs {
			if u := (&unstructured.Unstructured{Object: d.Object}); d.IsObject() && isNetworkPolicy(u.GetAPIVersion(), u.GetKind()) {
				own = append(own, patches[in.sources[next].judged])
				next++
			}
		}
		if err := t.patch(own); err != nil {
			return nil, fmt.Errorf("%s: %w", t.file, err)
		}
	}
	return found, writeTexts(cmd.OutOrStdout(), cmd.ErrOrStderr(), texts, apply)
}

// manifest is a file with its text and what is in it.
type manifest struct {
	file        string
	text, fixed []byte
	docs        []objects.Document
}

func (f *netpolFlags) readTexts(stdin io.Reader) ([]manifest, error) {
	files, err := objects.Expand(f.files)
	if err != nil {
		return nil, err
	}
	var out []manifest
	for _, file := range files {
		t := manifest{file: file}
		if file == objects.Stdin {
			t.text, err = io.ReadAll(stdin)
		} else {
			t.text, err = os.ReadFile(file)
		}
		if err != nil {
			return nil, err
		}
		if t.docs, err = objects.Read(file, bytes.NewReader(t.text)); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// patch fills in the file's text after the patches of its NetworkPolicies, one each, in order. When the text does not
// mean then what it should, because of aliases for example, the documents are written anew.
func (t *manifest) patch(patches [][]netpolcheck.Operation) error {
	want := make([]map[string]any, len(t.docs))
	next, changes := 0, false
	for i, d := range t.docs {
		u := (&unstructured.Unstructured{Object: d.Object}).DeepCopy()
		want[i] = u.Object
		if !isNetworkPolicy(u.GetAPIVersion(), u.GetKind()) {
			continue
		}
		if err := netpolcheck.Apply(u.Object, patches[next]); err != nil {
			return err
		}
		changes = changes || len(patches[next]) > 0
		next++
	}
	t.fixed = t.text
	if !changes {
		return nil
	}
	next = 0
	entry := []yamltext.Field{{Name: "protocol", Value: "TCP"}, {Name: "port", Value: fmt.Sprint(netpolcheck.Port)}}
	text, err := yamltext.Append(t.text, entry, func(apiVersion, kind string) (lists [][]string) {
		if !isNetworkPolicy(apiVersion, kind) || next >= len(patches) {
			return nil
		}
		for _, o := range patches[next] {
			if o.Op == "add" {
				lists = append(lists, strings.Split(strings.TrimSuffix(o.Path, "/-"), "/")[1:])
			}
		}
		next++
		return lists
	})
	if err == nil && means(t.file, text, want) {
		t.fixed = text
		return nil
	}
	var b bytes.Buffer
	for _, o := range want {
		text, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	t.fixed = b.Bytes()
	return nil
}

// means reports whether a text has just these documents, whatever the order of ports.
func means(file string, text []byte, want []map[string]any) bool {
	docs, err := objects.Read(file, bytes.NewReader(text))
	if err != nil || len(docs) != len(want) {
		return false
	}
	for i, d := range docs {
		if !reflect.DeepEqual(sortedPorts(d.Object), sortedPorts(want[i])) {
			return false
		}
	}
	return true
}

// sortedPorts returns the object with the ports of its rules in an order of their own.
func sortedPorts(object map[string]any) map[string]any {
	object = (&unstructured.Unstructured{Object: object}).DeepCopy().Object
	spec, _ := object["spec"].(map[string]any)
	for _, direction := range []string{"ingress", "egress"} {
		rules, _ := spec[direction].([]any)
		for _, r := range rules {
			rule, _ := r.(map[string]any)
			ports, _ := rule["ports"].([]any)
			slices.SortFunc(ports, func(a, b any) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	}
	return object
}

func isNetworkPolicy(apiVersion, kind string) bool {
	return schema.FromAPIVersionAndKind(apiVersion, kind).GroupKind() == schema.GroupKind{Group: networkingv1.GroupName, Kind: "NetworkPolicy"}
}

func writeTexts(out, told io.Writer, texts []manifest, apply bool) error {
	separator := "" // before a text that does not begin with one
	for _, t := range texts {
		if apply && t.file != objects.Stdin {
			if bytes.Equal(t.text, t.fixed) {
				continue
			}
			if err := rewrite(t.file, t.fixed); err != nil {
				return err
			}
			fmt.Fprintf(told, "%s patched\n", inspect.Clean(t.file))
			continue
		}
		if bytes.HasPrefix(t.fixed, []byte("---")) {
			separator = ""
		}
		end := ""
		if !bytes.HasSuffix(t.fixed, []byte("\n")) {
			end = "\n"
		}
		if _, err := fmt.Fprintf(out, "%s%s%s", separator, t.fixed, end); err != nil {
			return err
		}
		separator = "---\n"
	}
	return nil
}

// rewrite replaces what is in a file at once, so that a reader finds the old text or the new one.
func rewrite(file string, text []byte) error {
	file, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".culvert-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails once it has its name
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	return err
}
