package state

import (
	"github.com/liveapply/liveapply/internal/etcmerge"
	"github.com/liveapply/liveapply/internal/impact"
	"github.com/liveapply/liveapply/internal/ostree"
	"github.com/liveapply/liveapply/internal/partial"
)

// Summary is what a plan is about, without the content of files, which may be secret. `liveapplyctl diff --json` and `apply --dry-run --json` print
// it.
type Summary struct {
	Booted    ostree.Checksum  `json:"booted"`
	From      ostree.Checksum  `json:"from"` // live before
	Target    ostree.Checksum  `json:"target"`
	Live      ostree.Checksum  `json:"live"`              // live then: Target, or a commit made of a part of it
	Partial   *partial.About   `json:"partial,omitempty"` // what Live is, if it is no whole target
	Layers    []string         `json:"layers"`
	Transient bool             `json:"transient"`
	Impact    impact.Impact    `json:"impact"`
	Etc       []EtcChange      `json:"etc"`       // in tree order; null for those who may not read all of /etc
	EtcLocal  []etcmerge.Local `json:"etc_local"` // whose default changes, and which stay as the administrator has them
	// TmpfilesChanges are the lines of changed fragments of tmpfiles.d that change or remove something beside /usr and /etc.
	TmpfilesChanges []string `json:"tmpfiles_changes,omitempty"`
}

// EtcChange is a path that changes in /etc.
type EtcChange struct {
	Path string `json:"path"` // relative to /etc
	Kind string `json:"kind"` // add, remove, replace, merge, attributes
}

// Summary leaves out what is not for everybody's eyes, or for nobody's.
func (p *Plan) Summary() Summary {
	s := Summary{Booted: p.Booted, From: p.From, Target: p.Target, Live: p.Live, Partial: p.Partial, Layers: append([]string{}, p.Layers...), Transient: p.Transient, Impact: p.Impact}
	s.TmpfilesChanges = p.TmpfilesChanges
	if p.Etc == nil {
		return s
	}
	s.Etc, s.EtcLocal = []EtcChange{}, append([]etcmerge.Local{}, p.Etc.Local...)
	for _, change := range p.Etc.Changes {
		s.Etc = append(s.Etc, EtcChange{Path: change.Path, Kind: change.Kind()})
	}
	return s
}
