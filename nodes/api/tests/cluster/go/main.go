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
	Size  int64             `json:"size,string"`
	Tiles map[string]string `json:"tiles"`
}

// tiles is what the log serves, by name: L/NNN, L/NNN.p/W.
type tiles map[string]string

func (tiles) Height() int { return 8 }

func (all tiles) ReadTiles(asked []tlog.Tile) (found [][]byte, err error) {
	for _, tile := range asked {
		name := strings.TrimPrefix(tile.Path(), "tile/8/")
		text, there := all[name]
		if !there {
			return nil, fmt.Errorf("there is no tile %s", name)
		}
		bytes, err := hex.DecodeString(text)
		if err != nil {
			return nil, err
		}
		found = append(found, bytes)
	}
	return found, nil
}

func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}

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
	// The head of everything, from a proof; then any record of it from the tiles alone.
	var root tlog.Hash
	for _, c := range in.Cases {
		if c.Proof.Size == in.Size {
			root = hash(c.Proof.Root)
		}
	}
	tree := tlog.Tree{N: in.Size, Hash: root}
	prove := func(all tiles, record int64) error {
		reader := tlog.TileHashReader(tree, all)
		path, err := tlog.ProveRecord(in.Size, record, reader)
		if err != nil {
			return err
		}
		leaf, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, record)})
		if err != nil {
			return err
		}
		return tlog.CheckRecord(path, in.Size, root, record, leaf[0])
	}
	read := 0
	for ; read < 16; read++ {
		must(prove(in.Tiles, int64(read)*(in.Size-1)/15))
	}
	for name, text := range in.Tiles {
		altered := tiles{}
		for other, text := range in.Tiles {
			altered[other] = text
		}
		bytes, err := hex.DecodeString(text)
		must(err)
		bytes[len(bytes)-1] ^= 1
		altered[name] = hex.EncodeToString(bytes)
		// The one that holds its leaf, or what that leaf's tile is checked against.
		record := int64(255)
		if name != "0/000" && strings.HasPrefix(name, "0/") {
			record = in.Size - 1
		}
		refused(prove(altered, record), "a tile that was altered")
		wrong++
	}
	fmt.Printf("ok: %d notes, %d inclusions, %d consistencies, %d from %d tiles; %d altered ones refused\n",
		notes, inclusions, consistencies, read, len(in.Tiles), wrong)
}
