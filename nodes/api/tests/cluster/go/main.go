// Checks what CVLAN proves with code that is not ours: golang.org/x/mod/sumdb/note and tlog.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type proof struct {
	Size        int64    `json:"size,string"`
	Root        string   `json:"root"`
	Note        string   `json:"note"`
	Signers     []string `json:"signers"`
	Seq         int64    `json:"seq,string"`
	Leaf        string   `json:"leaf"`
	Inclusion   []string `json:"inclusion"`
	OldSize     int64    `json:"oldSize,string"`
	OldRoot     string   `json:"oldRoot"`
	Consistency []string `json:"consistency"`
}

type given struct {
	Keys []struct {
		Voter    bool   `json:"voter"`
		Verifier string `json:"verifier"`
	} `json:"keys"`
	Cases []struct {
		Proof proof `json:"proof"`
	} `json:"cases"`
}

func must(err error) {
	if err != nil {
		fmt.Println("wrong:", err)
		os.Exit(1)
	}
}

func refused(err error, what string) {
	if err == nil {
		must(fmt.Errorf("%s was taken", what))
	}
}

func hash(text string) (h tlog.Hash) {
	bytes, err := hex.DecodeString(text)
	must(err)
	copy(h[:], bytes)
	return h
}

func hashes(texts []string) (all []tlog.Hash) {
	for _, text := range texts {
		all = append(all, hash(text))
	}
	return all
}

func main() {
	var in given
	must(json.NewDecoder(os.Stdin).Decode(&in))
	var verifiers []note.Verifier
	for _, key := range in.Keys {
		if key.Voter {
			verifier, err := note.NewVerifier(key.Verifier)
			must(err)
			verifiers = append(verifiers, verifier)
		}
	}
	known := note.VerifierList(verifiers...)
	notes, inclusions, consistencies, wrong := 0, 0, 0, 0
	for _, c := range in.Cases {
		p := c.Proof
		opened, err := note.Open([]byte(p.Note), known)
		must(err)
		if len(opened.Sigs) != len(p.Signers) || len(opened.UnverifiedSigs) != 0 {
			must(fmt.Errorf("%d signatures, %d unknown, of %v", len(opened.Sigs), len(opened.UnverifiedSigs), p.Signers))
		}
		// As C2SP tlog-checkpoint has it: origin, size, root.
		lines := strings.Split(opened.Text, "\n")
		size, err := strconv.ParseInt(lines[1], 10, 64)
		must(err)
		root, err := tlog.ParseHash(lines[2])
		must(err)
		if !strings.HasPrefix(lines[0], "cvlan/") || size != p.Size || root != hash(p.Root) {
			must(fmt.Errorf("the note says %q", opened.Text))
		}
		_, err = note.Open([]byte(strings.Replace(p.Note, "cvlan/", "cvlam/", 1)), known)
		refused(err, "a note of another log")
		notes, wrong = notes+1, wrong+1

		leaf := hash(p.Leaf)
		must(tlog.CheckRecord(hashes(p.Inclusion), p.Size, root, p.Seq-1, leaf))
		leaf[5] ^= 1
		refused(tlog.CheckRecord(hashes(p.Inclusion), p.Size, root, p.Seq-1, leaf), "another leaf")
		inclusions, wrong = inclusions+1, wrong+1

		if p.OldSize > 0 {
			old := hash(p.OldRoot)
			must(tlog.CheckTree(hashes(p.Consistency), p.Size, root, p.OldSize, old))
			old[5] ^= 1
			refused(tlog.CheckTree(hashes(p.Consistency), p.Size, root, p.OldSize, old), "another old root")
			consistencies, wrong = consistencies+1, wrong+1
		}
	}
	fmt.Printf("ok: %d notes, %d inclusions, %d consistencies; %d altered ones refused\n", notes, inclusions, consistencies, wrong)
}
