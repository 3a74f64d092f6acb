package h2

// How much credit a stream has is its memory when its reader stops, and its speed when the way is long. It starts small
// and doubles as long as half of it is used up within two round trips.
//
// That alone is not fair. The round trip is measured when little is under way; once some streams have large windows,
// what they have in flight is in the way of the others, whose halves then take many of those round trips, and who stay
// small for ever. So a stream also follows the largest one as long as it turns over its window as quickly as that does.
//
// A window up to sure bytes may be had by every stream. What is above comes from a budget of the session, of which each
// stream that is above may have an equal part: who has more gets less credit back until it fits.

// sureWindows is how often StreamWindow fits into the window that every stream may have.
const sureWindows = 4

// leadLasts is how long the largest stream is an example, in nanoseconds.
const leadLasts = 1_000_000_000

// lead is the turnover of the largest stream that was active of late.
type lead struct {
	target   int64
	interval int64 // nanoseconds for half of it
	at       int64
}

func (s *Session) sure() int64 {
	return min(sureWindows*int64(s.cfg.StreamWindow), int64(s.cfg.StreamCeiling))
}

// resize changes a stream's window and keeps the accounts.
func (s *Session) resize(st *Stream, more int64) {
	sure := s.sure()
	above := func() (size int64, count int) {
		if st.target <= sure {
			return 0, 0
		}
		return st.target - sure, 1
	}
	size, count := above()
	s.above, s.large = s.above-size, s.large-count
	st.target += more
	size, count = above()
	s.above, s.large = s.above+size, s.large+count
}

// adapt changes the window of a stream that has used up half of it, and returns by how much.
func (s *Session) adapt(st *Stream) int64 {
	interval := s.Now - st.grantedAt
	more := s.wanted(st, interval)
	if st.target >= s.lead.target || s.Now-s.lead.at > leadLasts {
		s.lead = lead{st.target + max(more, 0), interval, s.Now}
	}
	if more != 0 {
		s.resize(st, more)
	}
	return more
}

func (s *Session) wanted(st *Stream, interval int64) int64 {
	sure, large := s.sure(), s.large
	if st.target <= sure {
		large++
	}
	limit := min(int64(s.cfg.StreamCeiling), sure+s.cfg.GrowBudget/int64(max(large, 1)))
	if st.target > limit {
		return -min(st.drained, st.target-limit)
	}
	switch {
	case interval < max(2*s.RTT, 2_000_000):
	case st.target < s.lead.target && s.Now-s.lead.at <= leadLasts && interval <= 2*s.lead.interval:
		limit = min(limit, s.lead.target)
	default:
		return 0
	}
	more := min(st.target, limit-st.target)
	if over := st.target + more - max(st.target, sure); over > 0 {
		more -= max(0, over-(s.cfg.GrowBudget-s.above))
	}
	return max(more, 0)
}
