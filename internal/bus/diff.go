package bus

import (
	"encoding/json"

	"github.com/godbus/dbus/v5"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
)

// maxDiffs bounds the comparisons that wait: everybody may ask for one. They are made one after the other.
const maxDiffs = 16

// resultDone is the result of a comparison.
const resultDone state.Result = "done"

// Diff starts to find out what applying a commit would mean.
func (m manager) Diff(message dbus.Message, commit string) (dbus.ObjectPath, *dbus.Error) {
	s := m.service
	target, err := s.choose(commit, config.Request{})
	if err != nil {
		return "", err
	}
	select {
	case s.diffs <- struct{}{}:
	default:
		return "", errorf(errLimitsExceeded, "%d comparisons are waiting: try again later", maxDiffs)
	}
	return s.begin(callOf(&message), func() (state.Result, string) {
		defer func() { <-s.diffs }()
		return s.dryRun(target, commit)
	}), nil
}

// dryRun tells what applying a commit would mean, in JSON, or why it would be refused. It leaves out what it would do in /etc: Finished goes to
// everybody, and not everybody may know which files there are.
func (s *Service) dryRun(target ostree.Checksum, revision string) (state.Result, string) {
	s.comparing.Lock()
	defer s.comparing.Unlock()
	plan, err := s.system.DryRun(s.ctx, target.String(), config.Request{Revision: revision})
	if err != nil {
		return state.Refused, err.Error()
	}
	plan.Etc = nil
	text, err := json.Marshal(plan.Summary())
	if err != nil {
		return resultFailed, err.Error()
	}
	return resultDone, string(text)
}
