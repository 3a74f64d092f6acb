// Command protogen compiles .proto files and writes the Go code of their messages beside them. It does what protoc with
// protoc-gen-go does, without a program that is not written in Go.
//
//	protogen -root DIR FILE.proto...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	root := flag.String("root", ".", "directory of the files")
	flag.Parse()
	if err := run(*root, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(root string, files []string) error {
	if len(files) == 0 {
		return errors.New("no files given")
	}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: files}
	for _, f := range compiled {
		for i := range f.Imports().Len() {
			// What is imported would have to go before; nothing is, until somebody needs it.
			return fmt.Errorf("%s imports %s: imports are not supported", f.Path(), f.Imports().Get(i).Path())
		}
		result, ok := f.(linker.Result)
		if !ok {
			return fmt.Errorf("%s: compiled without a descriptor", f.Path())
		}
		request.ProtoFile = append(request.ProtoFile, result.FileDescriptorProto())
	}
	plugin, err := protogen.Options{}.New(request)
	if err != nil {
		return err
	}
	for _, f := range plugin.Files {
		internal_gengo.GenerateFile(plugin, f)
	}
	response := plugin.Response()
	if response.Error != nil {
		return errors.New(response.GetError())
	}
	for i, f := range response.GetFile() {
		out := filepath.Join(root, path.Dir(files[i]), path.Base(f.GetName()))
		if err := os.WriteFile(out, []byte(f.GetContent()), 0o644); err != nil {
			return fmt.Errorf("write code: %w", err)
		}
	}
	return nil
}
