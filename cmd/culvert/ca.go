package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/identity/ca/issuer"
)

func caCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ca", Short: "Certificate authorities in files, for trying things out"}
	var cert, key, trustDomain string
	create := &cobra.Command{
		Use:   "init",
		Short: "Create a certificate authority",
		Long: `Create a certificate authority: a certificate and its key, as PEM files for --ca-cert and --ca-key of culvert-node.

Whoever has the key can mint any identity of the mesh. It suits a demonstration or nodes that are all yours; in a
cluster certificates come from the controller, from istiod or from SPIRE. Existing files are never overwritten.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := issuer.CreateFiles(cert, key, trustDomain); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "created %s and %s (keep the key to yourself) for trust domain %s\n", cert, key, trustDomain)
			return nil
		},
	}
	create.Flags().StringVar(&cert, "ca-cert", "ca.pem", "certificate file to create")
	create.Flags().StringVar(&key, "ca-key", "ca-key.pem", "private key file to create, readable by its owner only")
	create.Flags().StringVar(&trustDomain, "trust-domain", "cluster.local", "trust domain of the identities")
	cmd.AddCommand(create)
	return group(cmd)
}
