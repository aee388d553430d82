//go:build nspawn

package nspawn_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/liveapply/liveapply/internal/overlay"
	"github.com/liveapply/liveapply/test/nspawn"
)

// This is what overlays do, told by plain maps: it shares no code with the project, which it judges.

// modelOverlay is an overlay in the model.
type modelOverlay struct {
	made    overlay.Operation // by which it was created
	enabled bool
	content map[string]nspawn.Entry // by path below the root directory; one that is nowhere masks
}

// masked is what an overlay has at a path that it masks.
var masked = nspawn.Entry{}

func isAt(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func isFile(e nspawn.Entry) bool { return e.Mode&unix.S_IFMT == unix.S_IFREG }

// over returns what a tree shows with one more overlay on it. Paths are those of the content.
func (o *modelOverlay) over(tree nspawn.Snapshot) nspawn.Snapshot {
	tree = maps.Clone(tree)
	for _, at := range slices.Sorted(maps.Keys(o.content)) { // directories before what is in them
		maps.DeleteFunc(tree, func(below string, _ nspawn.Entry) bool { return isAt(below, at) })
		for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
			if _, there := tree[dir]; !there {
				tree[dir] = nspawn.Entry{Mode: unix.S_IFDIR | 0o755}
			}
		}
		if o.content[at] != masked {
			tree[at] = o.content[at]
		}
	}
	return tree
}

// drop takes a path out of the content, and what is below it.
func (o *modelOverlay) drop(at string) {
	maps.DeleteFunc(o.content, func(below string, _ nspawn.Entry) bool { return isAt(below, at) })
}

// stacked returns what a tree shows under those overlays that are enabled.
func stacked(tree nspawn.Snapshot, overlays []*modelOverlay) nspawn.Snapshot {
	lowest := slices.SortedFunc(slices.Values(overlays), func(a, b *modelOverlay) int {
		if a.made.Priority != b.made.Priority {
			return a.made.Priority - b.made.Priority
		}
		return strings.Compare(a.made.Name, b.made.Name)
	})
	for _, o := range lowest {
		if o.enabled {
			tree = o.over(tree)
		}
	}
	return tree
}

// do is what an operation does to an overlay. system is what all see when the request comes.
func (o *modelOverlay) do(op overlay.Operation, content string, system nspawn.Snapshot) {
	at := strings.TrimPrefix(op.Path, "/")
	switch op.Verb {
	case overlay.Enable, overlay.Disable:
		o.enabled = op.Verb == overlay.Enable
	case overlay.Add:
		o.content[at] = system[at]
	case overlay.Set:
		file := nspawn.Entry{Mode: unix.S_IFREG | op.Mode}
		if before := o.content[at]; isFile(before) {
			file = before
		} else if before := system[at]; isFile(before) {
			file = before
		}
		sum := sha256.Sum256([]byte(content))
		file.Size, file.SHA256 = int64(len(content)), hex.EncodeToString(sum[:])
		o.content[at] = file
	case overlay.Mask:
		o.drop(at)
		o.content[at] = masked
	case overlay.Unset:
		o.drop(at)
	}
}

// usrAndEtc is a snapshot of /usr and /etc, as far as the paths are below one of those given; all without any.
func usrAndEtc(m *nspawn.Machine, below ...string) nspawn.Snapshot {
	if len(below) == 0 {
		below = []string{"usr", "etc"}
	}
	all := nspawn.Snapshot{}
	for _, dir := range below {
		if !m.Exists("/" + dir) {
			continue
		}
		for name, entry := range m.Snapshot("/" + dir) {
			all[path.Join(dir, name)] = entry
		}
	}
	return all
}

// only leaves what is at or below some paths.
func only(tree nspawn.Snapshot, dirs ...string) nspawn.Snapshot {
	rest := maps.Clone(tree)
	maps.DeleteFunc(rest, func(at string, _ nspawn.Entry) bool {
		return !slices.ContainsFunc(dirs, func(dir string) bool { return isAt(at, dir) })
	})
	return rest
}

// overlayStores are where a machine keeps overlays: those of the system, of all systems of the machine, and those until the reboot.
var overlayStores = []string{"/var/lib/liveapply/overlays", "/sysroot/ostree/liveapply/overlays", "/run/liveapply/overlays"}

// indexOf is what the index of a store says.
func indexOf(t *testing.T, m *nspawn.Machine, store string) (index overlay.Index) {
	t.Helper()
	if !m.Exists(store + "/overlays.json") {
		return index
	}
	if err := json.Unmarshal([]byte(m.Read(store+"/overlays.json")), &index); err != nil {
		t.Fatal(err)
	}
	return index
}

// requireTidy makes sure that there is nothing of overlays but what the indexes name: no other content, no transaction, no request, and no note on
// what is not mounted. Only a service that was started while an overlay was shown, and has a mount of its own below /usr
// (ProtectKernelModules=yes), keeps what it sees: the kernel takes no mount away that another one is on.
func requireTidy(t *testing.T, m *nspawn.Machine) {
	t.Helper()
	mounted := overlaysMountedAnywhere(m)
	for _, store := range overlayStores {
		want := []string{}
		for _, o := range indexOf(t, m, store).Overlays {
			if o.Generation > 0 {
				want = append(want, filepath.Join(o.Name, strconv.Itoa(o.Generation)))
			}
		}
		slices.Sort(want)
		found := []string{}
		if m.Exists(store) {
			matches, err := filepath.Glob(m.Path(store) + "/*/*")
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range matches {
				generation := strings.TrimPrefix(match, m.Path(store)+"/")
				if slices.Contains(want, generation) || !strings.Contains(mounted, store+"/"+generation+"/") {
					found = append(found, generation)
				}
			}
			entries, err := os.ReadDir(m.Path(store))
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if !entry.IsDir() && entry.Name() != "overlays.json" {
					found = append(found, entry.Name())
				}
			}
		}
		if diff := lineDiff(want, found); diff != "" {
			t.Errorf("%s does not hold what its index says:\n%s\nmounted are\n%s", store, diff, mounted)
		}
	}
	for _, gone := range []string{"/run/liveapply/transaction.json", "/run/liveapply/overlays-aside"} {
		if m.Exists(gone) {
			t.Errorf("there is %s: %s", gone, m.Read(gone))
		}
	}
	if left := below(t, m, "/run/liveapply/overlay"); len(left) > 0 {
		t.Errorf("there are requests: %s", left)
	}
	for _, note := range below(t, m, "/run/liveapply/stacks") {
		digest := strings.TrimSuffix(filepath.Base(note), ".json")
		if !strings.Contains(mounted, "+"+digest+":") {
			t.Errorf("there is %s, and no such mount:\n%s", note, mounted)
		}
	}
}

// overlaysMountedAnywhere lists the overlays of each mount namespace, and a process in it.
func overlaysMountedAnywhere(m *nspawn.Machine) string {
	return m.Run("sh", "-c", "for p in /proc/[0-9]*; do echo $(readlink $p/ns/mnt) $(grep -h -o 'overlay .*' $p/mountinfo) of $(cat $p/comm); done 2>/dev/null | sort -u -k1,1")
}
