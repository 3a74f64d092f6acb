package authority

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// maxRetired bounds what a Secret holds for somebody who brings another
// intermediate every day; the oldest go first.
const maxRetired = 32

// retired is a signer that has been replaced. It signs nothing but revocation
// lists, as long as something that it signed may be valid.
type retired struct {
	signer *Signer // without a key if it was brought: its lists are too
	until  time.Time
}

// retiredRecord is a retired signer as it is stored. The key is for the Secret
// only, as that of the signer.
type retiredRecord struct {
	Chain string    `json:"chain"` // as PEM, the signing certificate first
	Key   string    `json:"key,omitempty"`
	Until time.Time `json:"until"`
}

// retireSigner remembers a signer that the present one has replaced at now. Its
// root may stay in the bundle for longer, or for ever if the present one is
// below it too, but nothing that it signed lives on.
func (st *State) retireSigner(s *Signer, own bool, now time.Time, cfg Config) {
	if s.cert.Equal(st.Signer.cert) && own == st.own {
		return
	}
	old := *s
	if !own {
		old.key = nil
	}
	until := now.Add(max(cfg.Overlap, cfg.MaxTTL+overlapMargin))
	st.retired = slices.DeleteFunc(slices.Clone(st.retired), func(r retired) bool {
		return r.signer.cert.Equal(s.cert) && (r.signer.key != nil) == own
	})
	st.retired = append(st.retired, retired{&old, until})
	if n := len(st.retired); n > maxRetired {
		st.retired = st.retired[n-maxRetired:]
	}
}

// dropRetired forgets those whose time has come or whose roots have left.
func (st *State) dropRetired(now time.Time, p *Progress) {
	before := len(st.retired)
	st.retired = slices.DeleteFunc(slices.Clone(st.retired), func(r retired) bool {
		if !now.Before(r.until) {
			return true
		}
		for _, root := range r.signer.anchors() {
			if st.indexOf(root) >= 0 {
				p.soonest(r.until)
				return false
			}
		}
		return true
	})
	p.Changed = p.Changed || len(st.retired) < before
}

func (st State) encodeRetired() ([]byte, error) {
	var all []retiredRecord
	for _, r := range st.retired {
		chain := r.signer.above
		if len(chain) == 0 {
			chain = append(chain, r.signer.cert)
		}
		rec := retiredRecord{Chain: string(encode(chain...)), Until: r.until.UTC()}
		if r.signer.key != nil {
			m, err := r.signer.Material()
			if err != nil {
				return nil, err
			}
			rec.Key = string(m.Key)
		}
		all = append(all, rec)
	}
	return json.Marshal(all)
}

// applyRetired reads what encodeRetired wrote; the bundle is known.
func (st *State) applyRetired(raw []byte) error {
	if len(raw) > maxPEM {
		return fmt.Errorf("%d octets, limit is %d", len(raw), maxPEM)
	}
	var all []retiredRecord
	if err := json.Unmarshal(raw, &all); err != nil {
		return err
	}
	if len(all) > maxRetired {
		return fmt.Errorf("%d signers, limit is %d", len(all), maxRetired)
	}
	for i, rec := range all {
		chain, err := certificates("chain", []byte(rec.Chain))
		if err != nil {
			return fmt.Errorf("signer %d: %w", i+1, err)
		}
		s := &Signer{cert: chain[0], roots: st.Certificates()}
		if !contains(s.roots, s.cert) {
			s.above = chain
		}
		if rec.Key != "" {
			if err := s.readKey([]byte(rec.Key)); err != nil {
				return fmt.Errorf("signer %d: %w", i+1, err)
			}
		}
		st.retired = append(st.retired, retired{s, rec.Until})
	}
	return nil
}
