package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The tree in which files are looked for has directories with files in them, two levels below its root, and a program.
const (
	lookupDirectories = 40
	lookupFiles       = 50 // in each
	lookupProgram     = "bin/program"
	lookupLayers      = 10
)

// lookup measures what layers cost who looks for files in /usr or starts programs from there.
func (b *bench) lookup() section {
	b.Logf("paths through layers")
	return section{title: "PATHS THROUGH LAYERS, FOR EACH PATH OR START", groups: []group{
		b.lookupGroup("each layer has a file in every directory", func(layer int) (directories []int) {
			for i := range lookupDirectories {
				directories = append(directories, i)
			}
			return directories
		}),
		b.lookupGroup("each layer has a file in one directory", func(layer int) []int { return []int{layer} }),
	}}
}

// through is a number of layers that paths are looked up through.
type through struct {
	name   string
	layers int
	result []result
}

// lookupGroup measures with layers that have a file of their own in those directories that the function tells.
func (b *bench) lookupGroup(name string, directories func(layer int) []int) group {
	dir, err := os.MkdirTemp(b.work, "lookup-")
	b.check(err)
	booted, list := filepath.Join(dir, "booted"), filepath.Join(dir, "list")
	var paths []string
	for i := range lookupDirectories {
		for j := range lookupFiles {
			paths = append(paths, fmt.Sprintf("share/%d/file-%d", i, j))
		}
	}
	b.fill(booted, paths)
	b.copyProgram(filepath.Join(booted, lookupProgram))
	b.check(os.WriteFile(list, []byte(strings.Join(paths, "\n")+"\n"), 0o600))
	var layers []string
	for layer := range lookupLayers {
		var added []string
		for _, directory := range directories(layer) {
			added = append(added, fmt.Sprintf("share/%d/of-layer-%d", directory, layer))
		}
		layers = append(layers, filepath.Join(dir, fmt.Sprint("layer-", layer)))
		b.fill(layers[layer], added)
	}

	ways := []*through{{name: "no overlay"}, {name: "one layer", layers: 1}, {name: "ten layers", layers: lookupLayers}}
	var runs []func(bool)
	for _, w := range ways {
		runs = append(runs, func(counted bool) {
			work, err := os.MkdirTemp(dir, "run-")
			b.check(err)
			r := b.measured(&syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, b.program("liveapply-way"), "in", booted,
				strings.Join(layers[:w.layers], ":"), work, b.program("lookup"), filepath.Join(work, "usr"), list, lookupProgram)
			if counted {
				w.result = append(w.result, r)
			}
		})
	}
	b.inTurn(runs)
	return compareLookups(name, ways)
}

// fill makes files, and their directories.
func (b *bench) fill(root string, paths []string) {
	for _, path := range paths {
		full := filepath.Join(root, path)
		b.check(os.MkdirAll(filepath.Dir(full), 0o755))
		b.check(os.WriteFile(full, nil, 0o644))
	}
}

func (b *bench) copyProgram(to string) {
	content, err := os.ReadFile(b.program("lookup"))
	b.check(err)
	b.check(os.MkdirAll(filepath.Dir(to), 0o755))
	b.check(os.WriteFile(to, content, 0o755))
}

func (t *through) figure(name string) samples {
	var s samples
	for _, r := range t.result {
		s = append(s, r.figures[name])
	}
	return s
}

// compareLookups makes the rows and the ratios, of ten layers to one.
func compareLookups(name string, ways []*through) group {
	g := group{name: name}
	one, ten := ways[1], ways[2]
	for _, kind := range []struct {
		figure, name string
		limit        float64
	}{
		{"cold-existing", "a file, cold", 6},
		{"cold-missing", "no file, cold", 6},
		{"warm-existing", "a file, warm", 1.2},
		{"warm-missing", "no file, warm", 1.2},
		{"start", "start a static program", 1.2},
	} {
		for _, w := range ways {
			g.rows = append(g.rows, row{name: kind.name + ", " + w.name, time: w.figure(kind.figure), data: -1})
		}
		g.comparisons = append(g.comparisons, comparison{
			name: kind.name + ": ten / one", value: ten.figure(kind.figure).median() / one.figure(kind.figure).median(), held: atMost, limit: kind.limit,
		})
	}
	return g
}
