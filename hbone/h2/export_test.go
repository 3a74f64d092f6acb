package h2

// SetNextID lets a test come to the end of the stream identifiers.
func SetNextID(s *Session, id uint32) { s.nextID = id }
