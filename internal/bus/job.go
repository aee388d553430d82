package bus

import (
	"fmt"

	"github.com/godbus/dbus/v5"

	"github.com/liveapply/liveapply/internal/config"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/state"
	"github.com/liveapply/liveapply/internal/systemd"
)

// change is what a method asks for.
type change struct {
	action  string            // of polkit
	details map[string]string // for its rules
	unit    string            // does it
	target  ostree.Checksum   // is live then
	request config.Request    // for the unit to read
}

// resultFailed is the result of a job of which the history tells nothing.
const resultFailed state.Result = "failed"

// accept makes a job of a change, if the caller may ask for that, and returns the job's path.
func (s *Service) accept(message *dbus.Message, c change) (dbus.ObjectPath, *dbus.Error) {
	caller, err := s.callerOf(s.ctx, message)
	if err != nil {
		return "", err
	}
	if err := s.authorize(s.ctx, caller, c.action, c.details); err != nil {
		return "", err
	}
	c.request.RequestedBy, c.request.RequestedFrom = s.describe(s.ctx, caller)
	if c.action == actionRollback {
		c.request.RequestedBy += ", rollback"
	}
	if err := c.request.Check(); err != nil {
		return "", failed(err)
	}
	return s.begin(callOf(message), func() (state.Result, string) { return s.carryOut(c) }), nil
}

// begin starts a job in the background. Before the service looks whether there is still something to do, the job is known: the call is not yet
// answered.
func (s *Service) begin(from call, do func() (result state.Result, message string)) dbus.ObjectPath {
	s.mu.Lock()
	s.jobs++
	job := dbus.ObjectPath(fmt.Sprintf("%s/job/%d", Path, s.jobs))
	s.mu.Unlock()
	answered := s.work.answered(from)
	s.work.beginJob()
	go func() {
		defer s.work.endJob()
		result, message := do()
		select {
		case <-answered: // the caller has to know the job before its end
		case <-s.ctx.Done():
		}
		if s.ctx.Err() == nil {
			_, _ = s.refresh() // what the job has changed is announced before its end
			s.emit(Interface+".Finished", job, string(result), message)
		}
	}()
	return job
}

// carryOut starts the unit and tells how that ended, in the words of the history.
func (s *Service) carryOut(c change) (state.Result, string) {
	before := s.lastTransaction()
	err := s.system.Start(s.ctx, c.unit, c.target, c.request)
	if err == nil && c.unit == systemd.ResetUnit {
		return state.Reset, fmt.Sprintf("The booted tree is live again (commit %s).", c.target)
	}
	if err == nil {
		return state.Applied, fmt.Sprintf("Commit %s is live.", c.target)
	}
	entry, historyErr := s.system.LastEntry()
	if historyErr != nil || entry == nil || entry.Transaction == before || entry.Target != c.target && !entry.Target.IsZero() {
		return resultFailed, err.Error()
	}
	return entry.Result, entry.Reason
}

// lastTransaction returns the id of the transaction that the history ends with.
func (s *Service) lastTransaction() string {
	entry, err := s.system.LastEntry()
	if err != nil || entry == nil {
		return ""
	}
	return entry.Transaction
}
