package netpol

// Policies returns how many policies the Set holds. Without any, everything is
// allowed.
func (s *Snapshot) Policies() int { return s.policies.Len() }
