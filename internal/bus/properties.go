package bus

import (
	"github.com/godbus/dbus/v5"
)

// properties is org.freedesktop.DBus.Properties of the object. What is read is looked up at that moment, so that it is never older than
// what the caller knows from elsewhere.
type properties struct{ service *Service }

// Get returns one property.
func (p properties) Get(iface, name string) (dbus.Variant, *dbus.Error) {
	all, err := p.GetAll(iface)
	if err != nil {
		return dbus.Variant{}, err
	}
	value, ok := all[name]
	if !ok {
		return dbus.Variant{}, errorf(errUnknownProperty, "there is no property %s", name)
	}
	return value, nil
}

// GetAll returns all properties.
func (p properties) GetAll(iface string) (map[string]dbus.Variant, *dbus.Error) {
	if iface != Interface {
		return nil, errorf(errUnknownInterface, "there is no interface %s that has properties", iface)
	}
	now, err := p.service.refresh()
	if err != nil {
		return nil, failed(err)
	}
	return now.properties(), nil
}

// Set changes nothing: no property can be written.
func (p properties) Set(iface, name string, _ dbus.Variant) *dbus.Error {
	if _, err := p.Get(iface, name); err != nil {
		return err
	}
	return errorf(errReadOnly, "%s cannot be written: call Apply, Reset or Rollback", name)
}

// refresh looks at the system, and announces what is not as it was.
func (s *Service) refresh() (facts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.look()
	if err != nil {
		return facts{}, err
	}
	before := s.facts
	now = now.after(before)
	s.facts = now
	if changed := now.changedSince(before); len(changed) > 0 {
		s.emit("org.freedesktop.DBus.Properties.PropertiesChanged", Interface, changed, []string{})
	}
	if now.Phase != before.Phase {
		s.emit(Interface+".PhaseChanged", now.Phase)
	}
	if now.Progress != before.Progress {
		s.emit(Interface+".Progress", now.Progress)
	}
	return now, nil
}

// look reads the facts.
func (s *Service) look() (facts, error) {
	stamp, err := s.system.Status()
	if err != nil {
		return facts{}, err
	}
	t, err := s.system.Transaction()
	if err != nil {
		t = nil // damaged: the stamp says what there is to say
	}
	share := 0.0
	if t != nil && stamp.Phase != "" {
		share = s.system.Share(s.ctx, t.Request, stamp.Phase)
	}
	return factsOf(stamp, t, share), nil
}

// emit sends a signal. It fails only with the connection, and then the service ends.
func (s *Service) emit(name string, values ...any) { _ = s.conn.Emit(Path, name, values...) }
