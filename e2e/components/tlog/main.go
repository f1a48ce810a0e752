// Command tlog verifies a copy of an audit log with Go's own implementation of transparent logs, which has no line in common with Paddock's: the
// checkpoint by its key, the root by the tiles, and each entry by its proof.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: tlog FOLDER KEY")
		os.Exit(2)
	}
	size, err := verify(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(size)
}

func verify(folder, key string) (int64, error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return 0, err
	}
	signed, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return 0, err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return 0, err
	}
	var origin, root string
	var size int64
	if _, err := fmt.Sscanf(opened.Text, "%s\n%d\n%s\n", &origin, &size, &root); err != nil {
		return 0, err
	}
	hash, err := tlog.ParseHash(root)
	if err != nil {
		return 0, err
	}
	if size == 0 {
		return 0, errors.New("the log is empty")
	}
	// Each tile that is read is proven by those above it, up to the root.
	hashes := tlog.TileHashReader(tlog.Tree{N: size, Hash: hash}, tiles(folder))
	for first := int64(0); first < size; first += 256 {
		entries, err := bundle(folder, first/256, min(size-first, 256))
		if err != nil {
			return 0, err
		}
		for number, entry := range entries {
			leaf := first + int64(number)
			proof, err := tlog.ProveRecord(size, leaf, hashes)
			if err != nil {
				return 0, err
			}
			if err := tlog.CheckRecord(proof, size, hash, leaf, tlog.RecordHash(entry)); err != nil {
				return 0, fmt.Errorf("entry %d: %w", leaf, err)
			}
		}
	}
	return size, nil
}

// The path of a tile without the height, which the format of C2SP does not name.
func path(tile tlog.Tile) string {
	level, number := fmt.Sprint(tile.L), tile.N
	if tile.L == -1 {
		level = "entries"
	}
	name := fmt.Sprintf("%03d", number%1000)
	for number >= 1000 {
		number /= 1000
		name = fmt.Sprintf("x%03d/%s", number%1000, name)
	}
	if tile.W != 1<<uint(tile.H) {
		name += fmt.Sprintf(".p/%d", tile.W)
	}
	return filepath.Join("tile", level, name)
}

func bundle(folder string, index, width int64) ([][]byte, error) {
	data, err := os.ReadFile(filepath.Join(folder, path(tlog.Tile{H: 8, L: -1, N: index, W: int(width)})))
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, errors.New("a bundle ends within an entry")
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries, data = append(entries, data[2:end]), data[end:]
	}
	if int64(len(entries)) != width {
		return nil, fmt.Errorf("a bundle has %d entries, and must have %d", len(entries), width)
	}
	return entries, nil
}

type tiles string

func (folder tiles) Height() int { return 8 }

func (folder tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		data, err := os.ReadFile(filepath.Join(string(folder), path(tile)))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func (folder tiles) SaveTiles([]tlog.Tile, [][]byte) {}
