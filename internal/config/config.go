// Package config reads liveapply.conf(5): /etc/liveapply/liveapply.conf and the drop-ins liveapply.conf.d/*.conf below
// /etc, /run and /usr/lib, in systemd's syntax and precedence, and the request for one transaction, a drop-in above them all.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/renameio/v2"
)

// Allow is what kind of change may be applied; a later one allows what the earlier ones do.
type Allow string

// The values of Allow=.
const (
	Additive Allow = "additive" // nothing that is there changes or goes
	Replace  Allow = "replace"  // files change and go, within one release of the distribution
	Force    Allow = "force"    // no guard
)

// ParseAllow checks a value of Allow= or --allow=.
func ParseAllow(s string) (Allow, error) {
	switch a := Allow(s); a {
	case Additive, Replace, Force:
		return a, nil
	}
	return "", fmt.Errorf("%q is none of additive, replace, force", s)
}

// RestartServices is what is done to services that run on files which were replaced.
type RestartServices string

// The values of RestartServices=.
const (
	RestartNone    RestartServices = "none"    // they are only told
	RestartChanged RestartServices = "changed" // they are restarted at once
	RestartRolling RestartServices = "rolling" // one after the other
)

// ParseRestartServices checks a value of RestartServices= or --restart-services=.
func ParseRestartServices(s string) (RestartServices, error) {
	switch r := RestartServices(s); r {
	case RestartNone, RestartChanged, RestartRolling:
		return r, nil
	}
	return "", fmt.Errorf("%q is none of none, changed, rolling", s)
}

// Config is what liveapply.conf says.
type Config struct {
	Allow         Allow // Allow=
	Transient     bool  // Transient=: do not stage a deployment of the target
	VerifyContent bool  // VerifyContent=: check the content of each file that is linked, not only its name
	// RequireSignature=: apply only what is signed as the configuration of the remote that it is from asks for
	RequireSignature bool
	// PackageDatabase=: where a tree may have a dpkg database, before the usual places. Each one adds to the list, an empty one clears it.
	PackageDatabase []string
	// Indexes=: files, as patterns relative to /usr, that follow from which packages there are, besides those that are known
	Indexes          []string
	RestartServices  RestartServices // RestartServices=
	StartNewServices bool            // StartNewServices=: start units that are newly enabled
	HealthTimeout    string          // HealthTimeout=: how long services that were restarted are watched, a time span of systemd.time(7)
	// IgnoreUnits=, RestartUnits=, ReloadUnits=: patterns of units to which this, and nothing else, is done if they need it
	IgnoreUnits, RestartUnits, ReloadUnits []string
	Packages                               []string // Packages=, in requests only: take only these, and what they need, out of the target
	Exclude                                []string // Exclude=: leave these out of the target
	RequestedBy                            string   // RequestedBy=, in requests only: who asked
	RequestedFrom                          string   // RequestedFrom=, in requests only: the unit that asked
	Revision                               string   // Revision=, in requests only: what was asked for, before it was resolved to a commit
	LeaveStaged                            bool     // LeaveStaged=, in requests only: do not touch what is staged; the one who asks has found it there
	Overlay                                Overlay
	Auto                                   Auto
	Warnings                               []string
}

// Dirs are where configuration is looked for, below Root; tests give their own.
type Dirs struct {
	Root   string   // "/" but for tests
	Search []string // by precedence: a file hides those of the same name in the later ones
	Main   string
}

// System is where a machine has its configuration. The order is systemd's (systemd.conf(5)).
var System = Dirs{
	Root:   "/",
	Search: []string{"etc/liveapply", "run/liveapply", "usr/lib/liveapply"},
	Main:   "liveapply.conf",
}

const defaultHealthTimeout = "10s"

// defaults are what holds where no file says something.
func defaults() *Config {
	return &Config{Allow: Replace, RestartServices: RestartNone, HealthTimeout: defaultHealthTimeout}
}

// Load reads the configuration, and the request at path unless that is empty. A missing file is none; an unknown
// key is a warning, as in systemd, and a bad value is an error: an administrator who forbids something means it.
func (d Dirs) Load(request string) (*Config, error) {
	config := defaults()
	files, err := d.files()
	if err != nil {
		return nil, err
	}
	for _, path := range files {
		if err := config.read(path, false); err != nil {
			return nil, err
		}
	}
	if request == "" {
		return config, nil
	}
	if err := config.read(request, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return config, nil
}

// files lists what is to be read, in order: the main file of the first directory that has one, then the drop-ins of all
// directories by name.
func (d Dirs) files() ([]string, error) {
	var files []string
	dropins := map[string]string{}
	for _, dir := range d.Search {
		dir = filepath.Join(d.Root, dir)
		if main := filepath.Join(dir, d.Main); len(files) == 0 && exists(main) {
			files = append(files, main)
		}
		found, err := filepath.Glob(filepath.Join(dir, d.Main+".d", "*.conf"))
		if err != nil {
			return nil, fmt.Errorf("reading the configuration in %s: %w", dir, err)
		}
		for _, path := range found {
			if name := filepath.Base(path); dropins[name] == "" {
				dropins[name] = path
			}
		}
	}
	var names []string
	for name := range dropins {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		files = append(files, dropins[name])
	}
	return files, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (c *Config) read(path string, isRequest bool) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	defer file.Close()
	return c.parse(file, path, isRequest)
}

// parse reads what is in the file at path.
func (c *Config) parse(file io.Reader, path string, isRequest bool) error {
	options, err := unit.DeserializeOptions(file)
	if err != nil {
		return fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	for _, option := range options {
		if err := c.set(option, isRequest); errors.Is(err, errUnknown) {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: [%s] %s= is unknown, ignored", path, option.Section, option.Name))
		} else if err != nil {
			return fmt.Errorf("%s: [%s] %s=%s: %w", path, option.Section, option.Name, option.Value, err)
		}
	}
	return nil
}

var errUnknown = errors.New("unknown key")

func (c *Config) set(option *unit.UnitOption, isRequest bool) error {
	joined := *option
	joined.Value = strings.TrimSpace(strings.ReplaceAll(option.Value, "\\\n", " "))
	// Some values go into units as they are.
	if strings.ContainsAny(joined.Value, "\r\n") || strings.HasSuffix(joined.Value, `\`) {
		return errors.New("goes on in a next line that is not there")
	}
	return c.setJoined(&joined, isRequest)
}

// setJoined takes a value that is one line, however many it was written on.
func (c *Config) setJoined(option *unit.UnitOption, isRequest bool) (err error) {
	if option.Section == "Auto" && !isRequest {
		return c.Auto.set(option.Name, option.Value)
	}
	if option.Section == "Overlay" && !isRequest {
		return c.Overlay.set(option.Name, option.Value)
	}
	if option.Section != "Apply" {
		return errUnknown
	}
	switch option.Name {
	case "Allow":
		c.Allow, err = ParseAllow(option.Value)
	case "Transient":
		c.Transient, err = parseBool(option.Value)
	case "VerifyContent":
		c.VerifyContent, err = parseBool(option.Value)
	case "RequireSignature":
		c.RequireSignature, err = parseBool(option.Value)
	case "RestartServices":
		c.RestartServices, err = ParseRestartServices(option.Value)
	case "StartNewServices":
		c.StartNewServices, err = parseBool(option.Value)
	case "HealthTimeout":
		c.HealthTimeout = cmp.Or(option.Value, defaultHealthTimeout)
	case "IgnoreUnits":
		c.IgnoreUnits, err = appendPatterns(c.IgnoreUnits, option.Value)
	case "RestartUnits":
		c.RestartUnits, err = appendPatterns(c.RestartUnits, option.Value)
	case "ReloadUnits":
		c.ReloadUnits, err = appendPatterns(c.ReloadUnits, option.Value)
	case "Indexes":
		c.Indexes, err = appendIndexes(c.Indexes, option.Value)
	case "PackageDatabase":
		c.PackageDatabase = appendWords(c.PackageDatabase, option.Value)
	case "Exclude":
		if isRequest && c.Packages != nil {
			return errors.New("packages are either selected (Packages=) or left out (Exclude=)")
		}
		c.Exclude = appendWords(c.Exclude, option.Value)
	default:
		if isRequest {
			return c.setOfRequest(option)
		}
		return errUnknown
	}
	return err
}

// setOfRequest takes the keys that only requests have.
func (c *Config) setOfRequest(option *unit.UnitOption) (err error) {
	switch option.Name {
	case "Packages":
		c.Packages, c.Exclude = appendWords(c.Packages, option.Value), nil
	case "RequestedBy":
		c.RequestedBy = option.Value
	case "RequestedFrom":
		c.RequestedFrom = option.Value
	case "Revision":
		c.Revision = option.Value
	case "LeaveStaged":
		c.LeaveStaged, err = parseBool(option.Value)
	default:
		return errUnknown
	}
	return err
}

// appendWords adds to a list; an empty value clears it.
func appendWords(list []string, value string) []string {
	if value == "" {
		return nil
	}
	return append(list, strings.Fields(value)...)
}

// appendIndexes takes paths in a tree, with or without the slash of its root.
func appendIndexes(list []string, value string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	for _, pattern := range strings.Fields(value) {
		below, ok := strings.CutPrefix(strings.TrimPrefix(pattern, "/"), "usr/")
		if _, err := path.Match(below, ""); err != nil || !ok {
			return nil, fmt.Errorf("%s is not a pattern of paths below usr", pattern)
		}
		list = append(list, below)
	}
	return list, nil
}

// appendPatterns is appendWords for the names of services, and patterns of them for path.Match. Where a name has no suffix, .service is meant, as in
// systemctl(1).
func appendPatterns(list []string, value string) ([]string, error) {
	list = appendWords(list, value)
	for i, pattern := range list {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("%s is not a pattern of names: a bracket is not closed, or the like", pattern)
		}
		if !strings.ContainsAny(pattern, "*?[") && !strings.HasSuffix(pattern, serviceSuffix) {
			list[i] += serviceSuffix
		}
	}
	return list, nil
}

const serviceSuffix = ".service"

// parseBool takes systemd's words (parse_boolean).
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, errors.New("not a boolean: yes or no")
}

// Request is what one transaction is to do differently; the zero values leave it to the configuration.
type Request struct {
	Allow             Allow
	Transient         bool
	LeaveStaged       bool
	Packages, Exclude []string // at most one of them; names or patterns, without blanks
	RestartServices   RestartServices
	RequestedBy       string
	RequestedFrom     string
	Revision          string
}

// IsPartial tells whether only a part of the target is asked for.
func (r Request) IsPartial() bool { return len(r.Packages)+len(r.Exclude) > 0 }

// CheckNames refuses a selection of packages with a name that is empty: it would be a selection of all. No selection, nil, is none.
func CheckNames(packages []string) error {
	isEmpty := func(name string) bool { return strings.TrimSpace(name) == "" }
	if packages != nil && len(packages) == 0 || slices.ContainsFunc(packages, isEmpty) {
		return errors.New("the name of a package is empty")
	}
	return nil
}

// maxValue bounds a value in a request, in bytes: longer lines than 2048 are not read (unit.SYSTEMD_LINE_MAX).
const maxValue = 1024

// WriteRequest writes a request to path, for prepare to consume.
func WriteRequest(path string, r Request) error {
	content, err := r.encode()
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, content, 0o600, renameio.WithTempDir(filepath.Dir(path)))
}

// Check tells whether a request can be written.
func (r Request) Check() error {
	_, err := r.encode()
	return err
}

func (r Request) encode() ([]byte, error) {
	if err := errors.Join(CheckNames(r.Packages), CheckNames(r.Exclude)); err != nil {
		return nil, err
	}
	options := []*unit.UnitOption{unit.NewUnitOption("Apply", "RequestedBy", r.RequestedBy)}
	if r.Allow != "" {
		options = append(options, unit.NewUnitOption("Apply", "Allow", string(r.Allow)))
	}
	if r.Transient {
		options = append(options, unit.NewUnitOption("Apply", "Transient", "yes"))
	}
	for _, name := range r.Packages {
		options = append(options, unit.NewUnitOption("Apply", "Packages", name))
	}
	for _, name := range r.Exclude {
		options = append(options, unit.NewUnitOption("Apply", "Exclude", name))
	}
	if r.RestartServices != "" {
		options = append(options, unit.NewUnitOption("Apply", "RestartServices", string(r.RestartServices)))
	}
	if r.RequestedFrom != "" {
		options = append(options, unit.NewUnitOption("Apply", "RequestedFrom", r.RequestedFrom))
	}
	if r.Revision != "" {
		options = append(options, unit.NewUnitOption("Apply", "Revision", r.Revision))
	}
	if r.LeaveStaged {
		options = append(options, unit.NewUnitOption("Apply", "LeaveStaged", "yes"))
	}
	for _, option := range options {
		if strings.ContainsAny(option.Value, "\r\n") || strings.HasSuffix(option.Value, `\`) || len(option.Value) > maxValue {
			return nil, fmt.Errorf("a request's %s= must be one line of at most %d bytes that does not go on in the next one", option.Name, maxValue)
		}
	}
	content, err := io.ReadAll(unit.Serialize(options))
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	return content, nil
}
