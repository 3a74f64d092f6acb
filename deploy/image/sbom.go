package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// The parts of SPDX 2.3 that are used; https://spdx.github.io/spdx-spec/v2.3 has the whole.
type (
	spdxDocument struct {
		SPDXVersion       string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		SPDXID            string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		SPDXID           string         `json:"SPDXID"`
		Name             string         `json:"name"`
		VersionInfo      string         `json:"versionInfo,omitempty"`
		DownloadLocation string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		PrimaryPurpose   string         `json:"primaryPackagePurpose,omitempty"`
		LicenseConcluded string         `json:"licenseConcluded"`
		LicenseDeclared  string         `json:"licenseDeclared"`
		CopyrightText    string         `json:"copyrightText"`
		Comment          string         `json:"comment,omitempty"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const noAssertion = "NOASSERTION"

// billOfMaterials lists the programs, the modules that each was linked from, and Go's standard library, in SPDX JSON.
func billOfMaterials(o options, programs []program) ([]byte, error) {
	doc := spdxDocument{
		SPDXVersion:  "SPDX-2.3",
		DataLicense:  "CC0-1.0",
		SPDXID:       "SPDXRef-DOCUMENT",
		Name:         o.name + "-" + o.version,
		CreationInfo: spdxCreation{Created: commitTime(programs).Format(time.RFC3339), Creators: []string{"Tool: culvert-deploy-image"}},
	}
	all := sha256.New()
	modules := map[string]spdxPackage{}
	for _, p := range programs {
		sum := sha256.Sum256(p.data)
		all.Write(sum[:])
		id := "SPDXRef-Program-" + identifier(p.name)
		doc.Packages = append(doc.Packages, spdxPackage{
			SPDXID: id, Name: p.name, VersionInfo: o.version, DownloadLocation: noAssertion, PrimaryPurpose: "APPLICATION",
			LicenseConcluded: "Apache-2.0", LicenseDeclared: "Apache-2.0", CopyrightText: noAssertion,
			Comment:   "revision " + cmp.Or(p.setting("vcs.revision"), "unknown"),
			Checksums: []spdxChecksum{{"SHA256", hex.EncodeToString(sum[:])}},
		})
		doc.Relationships = append(doc.Relationships, spdxRelationship{doc.SPDXID, "DESCRIBES", id})
		for _, m := range append([]*debug.Module{{Path: "stdlib", Version: p.info.GoVersion}}, p.info.Deps...) {
			pkg := modulePackage(m)
			modules[pkg.SPDXID] = pkg
			doc.Relationships = append(doc.Relationships, spdxRelationship{id, "DEPENDS_ON", pkg.SPDXID})
		}
	}
	doc.DocumentNamespace = "https://github.com/culvert-mesh/culvert/sbom/" + hex.EncodeToString(all.Sum(nil))
	for _, pkg := range modules {
		doc.Packages = append(doc.Packages, pkg)
	}
	slices.SortStableFunc(doc.Packages, func(a, b spdxPackage) int { return cmp.Compare(a.SPDXID, b.SPDXID) })
	data, err := json.MarshalIndent(doc, "", "  ")
	return append(data, '\n'), err
}

// modulePackage describes a module, or what replaces it.
func modulePackage(m *debug.Module) spdxPackage {
	if m.Replace != nil {
		m = m.Replace
	}
	version := strings.TrimPrefix(m.Version, "go")
	return spdxPackage{
		SPDXID:           "SPDXRef-Module-" + identifier(m.Path) + "-" + identifier(m.Version),
		Name:             m.Path,
		VersionInfo:      version,
		DownloadLocation: noAssertion,
		LicenseConcluded: noAssertion,
		LicenseDeclared:  noAssertion,
		CopyrightText:    noAssertion,
		ExternalRefs:     []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(m.Path) + "@" + version}},
		Comment:          m.Sum,
	}
}

// What SPDX does not allow in an identifier.
var notIdentifier = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func identifier(name string) string { return notIdentifier.ReplaceAllString(name, "-") }
