package main

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/liveapply/liveapply/test/nspawn"
)

// update is a step from one commit to another.
type update struct {
	name     string
	repo     string
	old, new string // checksums
	isLarge  bool   // the one that the limits on building and switching are about
}

// debian is a machine, off, with the project in the commit that it boots, and updates of it in its repo.
type debian struct {
	machine                            *nspawn.Machine
	booted, one, pack, servers, twenty string // commits
}

// packageFiles is how many files the update by one package adds.
const packageFiles = 50

// twentyThousand is how many changes the memory of prepare is measured with.
const twentyThousand = 20_000

// debian makes the machine and the commits, once.
func (b *bench) debian() debian {
	if b.made.machine != nil {
		return b.made
	}
	b.Logf("making the machine's commits")
	booted := b.lab.WithProduct(b, b.lab.Base(b, nspawn.Trixie, nspawn.Minimal))
	d := debian{
		booted:  booted,
		one:     b.lab.Derive(b, booted, func(t *nspawn.Tree) { t.Write("usr/share/base-files/motd", "another\n", 0o644) }),
		pack:    b.lab.Derive(b, booted, addPackage),
		servers: b.lab.WithProduct(b, b.lab.Base(b, nspawn.Trixie, nspawn.Full)),
		twenty:  b.lab.Derive(b, booted, addFiles),
	}
	d.machine = b.lab.Machine(b, booted, nspawn.Options{})
	for _, commit := range []string{d.one, d.pack, d.servers, d.twenty} {
		d.machine.Pull(commit)
	}
	b.made = d
	return d
}

// updates of /usr that are measured outside of the machine.
func (d debian) updates() []update {
	repo := d.machine.Repo()
	return []update{
		{name: "one file", repo: repo, old: d.booted, new: d.one},
		{name: "one package", repo: repo, old: d.booted, new: d.pack},
		{name: "nginx, PostgreSQL, Python, git", repo: repo, old: d.booted, new: d.servers, isLarge: true},
	}
}

// addPackage adds what a package with a daemon has: a program, a unit, a tmpfiles.d fragment, a file in /etc, data, documentation.
func addPackage(t *nspawn.Tree) {
	t.Write("usr/sbin/sampled", strings.Repeat("\x7f sample", 40<<10), 0o755)
	t.Write("usr/lib/systemd/system/sampled.service", "[Service]\nExecStart=/usr/sbin/sampled\n", 0o644)
	t.Write("usr/lib/tmpfiles.d/sampled.conf", "d /var/lib/sampled 0755 root root -\n", 0o644)
	t.Write("usr/etc/sampled.conf", "# nothing is changed\n", 0o644)
	t.Write("usr/share/doc/sampled/copyright", "Copyright: nobody\n", 0o644)
	for i := range packageFiles - 5 {
		t.Write(fmt.Sprintf("usr/share/sampled/%d/data-%d", i/10, i), strings.Repeat(fmt.Sprintln(i), 500), 0o644)
	}
}

func addFiles(t *nspawn.Tree) {
	for i := range twentyThousand {
		t.Write(fmt.Sprintf("usr/share/many/%d/%d", i/20, i), fmt.Sprintln(i), 0o644)
	}
}

// generated is a repo with a tree of 100,000 files, and the same with changes.
type generated struct {
	repo             string
	base             string // these are commits
	inLarge, inSmall string // one file differs, in a directory of thousands, or of ten
	many             string // 20,000 changes
}

func (g generated) update() update {
	return update{name: "generated, 100,000 files", repo: g.repo, old: g.base, new: g.many}
}

// The generated tree has three directories with thousands of files, as a real /usr has, and many with ten.
var large = []struct {
	path  string
	files int
}{{"usr/bin", 3000}, {"usr/lib64", 4000}, {"usr/share/man/man1", 3000}}

const (
	small      = 9000 // directories
	smallFiles = 10   // in each
	every      = 5    // this part of the files differs in many
	maxSize    = 8000 // bytes in a file; 4000 on average
	recipe     = 2    // raise it when what is generated changes
)

func smallPath(dir, file int) string {
	return fmt.Sprintf("usr/share/p%02d/s%02d/f%d", dir/100, dir%100, file)
}

// generated makes the commits, unless they are in the cache.
func (b *bench) generated() generated {
	g := generated{repo: filepath.Join(b.cache, "repo")}
	key := sha256.Sum256(fmt.Append(nil, large, small, smallFiles, every, maxSize, recipe))
	prefix := fmt.Sprintf("generated/%x/", key[:6])
	b.command("ostree", "--repo="+g.repo, "init", "--mode=bare")
	// A run may be killed, but the machine under it does not crash.
	b.command("ostree", "--repo="+g.repo, "config", "set", "core.fsync", "false")
	if exec.Command("ostree", "--repo="+g.repo, "rev-parse", prefix+"many").Run() != nil {
		b.Logf("generating a tree of 100,000 files (once; kept in %s)", b.cache)
		tree := &generatedTree{bench: b, dir: filepath.Join(b.work, "generate"), repo: g.repo, prefix: prefix}
		tree.commitAll()
	}
	commits := map[string]*string{"base": &g.base, "large": &g.inLarge, "small": &g.inSmall, "many": &g.many}
	for name, commit := range commits {
		*commit = b.command("ostree", "--repo="+g.repo, "rev-parse", prefix+name)
	}
	return g
}

// generatedTree is what the commits are made from.
type generatedTree struct {
	*bench
	dir, repo, prefix string
}

// commitAll makes the commits; the last one tells that all are there.
func (t *generatedTree) commitAll() {
	t.eachFile(func(path string, _ bool) { t.write(path, "first") })
	t.commit("base")
	t.commitOne("large", large[0].path+"/f0")
	t.commitOne("small", smallPath(small/2, 0))
	t.eachFile(func(path string, differs bool) {
		if differs {
			t.write(path, "second")
		}
	})
	for dir := 0; dir < small; dir += every {
		t.check(os.Remove(filepath.Join(t.dir, smallPath(dir, smallFiles-1))))
		t.write(smallPath(dir, smallFiles), "second")
		t.write(smallPath(dir, smallFiles+1), "second")
	}
	t.commit("many")
	t.check(os.RemoveAll(t.dir))
}

// eachFile calls f for all files of the base tree, and says which of them have another content in many: every fifth in the large
// directories, and in every fifth of the small ones all but the last three, one of which goes, for two new ones.
func (t *generatedTree) eachFile(f func(path string, differs bool)) {
	for _, dir := range large {
		for i := range dir.files {
			f(fmt.Sprintf("%s/f%d", dir.path, i), i%every == 0)
		}
	}
	for dir := range small {
		for i := range smallFiles {
			f(smallPath(dir, i), dir%every == 0 && i < smallFiles-3)
		}
	}
}

// write makes a file whose content depends on its path and on the version.
func (t *generatedTree) write(path, version string) {
	random := rand.NewChaCha8(sha256.Sum256([]byte(version + path)))
	content := make([]byte, 1+random.Uint64()%maxSize)
	if _, err := random.Read(content); err != nil {
		t.Fatalf("%v", err)
	}
	path = filepath.Join(t.dir, path)
	t.check(os.MkdirAll(filepath.Dir(path), 0o755))
	t.check(os.WriteFile(path, content, 0o644))
}

func (t *generatedTree) commitOne(name, path string) {
	t.write(path, "second")
	t.commit(name)
	t.write(path, "first")
}

func (t *generatedTree) commit(name string) {
	t.command("ostree", "--repo="+t.repo, "commit", "--branch="+t.prefix+name, "--subject="+name,
		"--timestamp=@1767225600", "--tree=dir="+t.dir)
}
