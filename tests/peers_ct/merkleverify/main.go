// merkleverify holds Merkle proofs against transparency-dev's verifier.
//
// It reads one JSON object a line: an inclusion or a consistency proof, hashes in base64. For each it writes a line:
// "ok", or "refused: " and why. A line that is no such object ends it with status 2.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

const maxLine = 1 << 20

type request struct {
	Kind  string   `json:"kind"` // "inclusion" or "consistency"
	Index uint64   `json:"index"`
	Old   uint64   `json:"old"`
	Size  uint64   `json:"size"`
	Leaf  []byte   `json:"leaf"`
	First []byte   `json:"first"`
	Root  []byte   `json:"root"`
	Proof [][]byte `json:"proof"`
}

func judge(one request) error {
	switch one.Kind {
	case "inclusion":
		return proof.VerifyInclusion(rfc6962.DefaultHasher, one.Index, one.Size, one.Leaf, one.Proof, one.Root)
	case "consistency":
		return proof.VerifyConsistency(rfc6962.DefaultHasher, one.Old, one.Size, one.Proof, one.First, one.Root)
	}
	fmt.Fprintf(os.Stderr, "merkleverify: %q is no kind of proof\n", one.Kind)
	os.Exit(2)
	return nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLine)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		var one request
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			fmt.Fprintln(os.Stderr, "merkleverify:", err)
			os.Exit(2)
		}
		if err := judge(one); err != nil {
			fmt.Fprintf(out, "refused: %q\n", err)
		} else {
			fmt.Fprintln(out, "ok")
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "merkleverify:", err)
		os.Exit(2)
	}
}
