package bus

import (
	"maps"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/systemd"
)

// manager is the interface org.liveapply1.Manager; its methods are those of the interface.
type manager struct{ service *Service }

// Apply starts to apply a commit.
func (m manager) Apply(message dbus.Message, commit string, options map[string]dbus.Variant) (dbus.ObjectPath, *dbus.Error) {
	s := m.service
	request, err := requestOf(options)
	if err != nil {
		return "", err
	}
	request.Revision = commit
	target, err := s.choose(commit, request)
	if err != nil {
		return "", err
	}
	return s.accept(&message, change{
		action: actionApply, unit: systemd.ApplyUnit(target.String()), target: target, request: request, details: map[string]string{"commit": target.String()},
	})
}

// Reset starts to go back to the booted tree.
func (m manager) Reset(message dbus.Message, options map[string]dbus.Variant) (dbus.ObjectPath, *dbus.Error) {
	s := m.service
	if err := refuseOptions(options); err != nil {
		return "", err
	}
	clean, err := s.system.IsClean()
	if err != nil {
		return "", failed(err)
	}
	stamp, err := s.system.Status()
	if err != nil {
		return "", failed(err)
	}
	if clean {
		return "", errorf(errNothingToDo, "the booted tree is live (commit %s)", stamp.Booted)
	}
	return s.accept(&message, change{action: actionReset, unit: systemd.ResetUnit, target: stamp.Booted})
}

// Rollback starts to go back to what was live before.
func (m manager) Rollback(message dbus.Message, options map[string]dbus.Variant) (dbus.ObjectPath, *dbus.Error) {
	s := m.service
	if err := refuseOptions(options); err != nil {
		return "", err
	}
	stamp, err := s.system.Status()
	if err != nil {
		return "", failed(err)
	}
	before := stamp.Previous
	back := change{action: actionRollback, unit: systemd.ResetUnit, target: stamp.Booted}
	switch {
	case stamp.Phase != "":
		return "", errorf(errUnderWay, "a transaction is under way (phase %s): wait for its end, or take all back with Reset", stamp.Phase)
	case !stamp.IsApplied():
		return "", errorf(errNothingToDo, "nothing is applied: the booted tree is live (commit %s)", stamp.Booted)
	case before.IsZero() || before == stamp.Live:
		return "", errorf(errFailed, "it is not known what was live before: apply a commit, or go back to the booted tree with Reset")
	case before != stamp.Booted:
		// As liveapplyctl rollback: back is what an older commit or another release may be, and it was allowed before.
		back.unit, back.target = systemd.ApplyUnit(before.String()), before
		back.request = config.Request{Allow: config.Force, Transient: stamp.Transient}
	}
	back.details = map[string]string{"commit": back.target.String()}
	return s.accept(&message, back)
}

// options are what an application can be asked to do differently, as [Apply] of liveapply.conf.
var options = map[string]func(*config.Request, any) (valid bool){
	"Allow": func(r *config.Request, value any) bool {
		word, _ := value.(string)
		allow, err := config.ParseAllow(word)
		r.Allow = allow
		return err == nil
	},
	"Transient": func(r *config.Request, value any) (valid bool) {
		r.Transient, valid = value.(bool)
		return valid
	},
	"RestartServices": func(r *config.Request, value any) bool {
		word, _ := value.(string)
		restart, err := config.ParseRestartServices(word)
		r.RestartServices = restart
		return err == nil
	},
	"Packages": func(r *config.Request, value any) (valid bool) {
		r.Packages, valid = value.([]string)
		return valid && len(r.Exclude) == 0 && config.CheckNames(r.Packages) == nil
	},
	"Exclude": func(r *config.Request, value any) (valid bool) {
		r.Exclude, valid = value.([]string)
		return valid && len(r.Packages) == 0 && config.CheckNames(r.Exclude) == nil
	},
}

// Options are the options of Apply for a request.
func Options(r config.Request) map[string]dbus.Variant {
	given := map[string]dbus.Variant{}
	if r.Allow != "" {
		given["Allow"] = dbus.MakeVariant(string(r.Allow))
	}
	if r.Transient {
		given["Transient"] = dbus.MakeVariant(true)
	}
	if r.RestartServices != "" {
		given["RestartServices"] = dbus.MakeVariant(string(r.RestartServices))
	}
	if r.Packages != nil {
		given["Packages"] = dbus.MakeVariant(r.Packages)
	}
	if r.Exclude != nil {
		given["Exclude"] = dbus.MakeVariant(r.Exclude)
	}
	return given
}

func requestOf(given map[string]dbus.Variant) (config.Request, *dbus.Error) {
	var request config.Request
	for name, value := range given {
		set, known := options[name]
		if !known {
			return request, errorf(errInvalidOption, "the option %s is unknown; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(options)), ", "))
		}
		if !set(&request, value.Value()) {
			return request, errorf(errInvalidOption, "the option %s cannot be %s, see liveapply.conf(5)", name, value)
		}
	}
	return request, nil
}

func refuseOptions(given map[string]dbus.Variant) *dbus.Error {
	for name := range given {
		return errorf(errInvalidOption, "the option %s is unknown; there are none", name)
	}
	return nil
}

// choose finds the commit that a caller names, which must not be live; to ask for a part of it is something else.
func (s *Service) choose(rev string, request config.Request) (ostree.Checksum, *dbus.Error) {
	target, err := s.resolve(rev)
	if err != nil {
		return target, err
	}
	stamp, statusErr := s.system.Status()
	if statusErr != nil {
		return target, failed(statusErr)
	}
	if stamp.Live == target && stamp.Phase == "" && !request.IsPartial() { // what is under way may yet be taken back
		return target, errorf(errNothingToDo, "commit %s is live already", target)
	}
	return target, nil
}

// resolve finds a commit; without a name it is what the next boot leads to.
func (s *Service) resolve(rev string) (ostree.Checksum, *dbus.Error) {
	if rev != "" {
		target, err := s.system.Resolve(rev)
		if err != nil {
			return target, errorf(errNoSuchCommit, "%v", err)
		}
		return target, nil
	}
	next, err := s.system.NextBoot()
	if err != nil {
		return next.Commit, failed(err)
	}
	if next.Booted {
		return next.Commit, errorf(errNothingToDo, "no deployment is staged or pending")
	}
	return next.Commit, nil
}
