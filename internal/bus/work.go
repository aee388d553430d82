package bus

import (
	"sync"

	"github.com/godbus/dbus/v5"
)

// work knows what the service has to do yet: method calls that are not answered, and jobs that have not ended. It is told of each call
// by the goroutine that reads from the bus, in the order in which they came: a call is known before any message after it is handled.
type work struct {
	// changed is sent to, without waiting, when there is more to do or less.
	changed chan struct{}

	mu      sync.Mutex
	serial  uint32                 // of the last message that was sent
	calls   map[call]chan struct{} // each is closed when its answer has been written to the bus
	answers map[uint32]call        // what is about to be written, by its serial
	jobs    int
}

// call names a method call.
type call struct {
	sender string
	serial uint32
}

func newWork() *work {
	return &work{changed: make(chan struct{}, 1), calls: map[call]chan struct{}{}, answers: map[uint32]call{}}
}

// options have a connection tell of its messages.
func (w *work) options() []dbus.ConnOption {
	return []dbus.ConnOption{dbus.WithIncomingInterceptor(w.received), dbus.WithOutgoingInterceptor(w.sending), dbus.WithSerialGenerator(w)}
}

func (w *work) received(message *dbus.Message) {
	if message.Type != dbus.TypeMethodCall {
		return
	}
	// Each call ends with an answer, so that its end is known. The bus drops one that nobody waits for.
	message.Flags &^= dbus.FlagNoReplyExpected
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := callOf(message); w.calls[c] == nil { // a sender may number two calls the same
		w.calls[c] = make(chan struct{})
	}
	w.tell()
}

func callOf(message *dbus.Message) call {
	sender, _ := message.Headers[dbus.FieldSender].Value().(string)
	return call{sender, message.Serial()}
}

func (w *work) sending(message *dbus.Message) {
	if message.Type != dbus.TypeMethodReply && message.Type != dbus.TypeError {
		return
	}
	destination, _ := message.Headers[dbus.FieldDestination].Value().(string)
	serial, _ := message.Headers[dbus.FieldReplySerial].Value().(uint32)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[message.Serial()] = call{destination, serial}
}

// GetSerial numbers a message that is to be sent.
func (w *work) GetSerial() uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.serial++; w.serial == 0 { // the one value that is not allowed
		w.serial++
	}
	return w.serial
}

// RetireSerial is called when a message has been written, in so far as that is no call.
func (w *work) RetireSerial(serial uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	answered, isAnswer := w.answers[serial]
	if !isAnswer {
		return
	}
	delete(w.answers, serial)
	if done, ok := w.calls[answered]; ok {
		close(done)
		delete(w.calls, answered)
	}
	w.tell()
}

// answered returns a channel that is closed when a call has been answered.
func (w *work) answered(c call) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[c]
}

func (w *work) beginJob() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs++
	w.tell()
}

func (w *work) endJob() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs--
	w.tell()
}

func (w *work) tell() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// hasCalls tells whether there are calls that are not answered.
func (w *work) hasCalls() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.calls) > 0
}

// isNone tells whether there is nothing to do.
func (w *work) isNone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.calls) == 0 && w.jobs == 0
}
