package main

import "time"

// dump is what the admin server shows of the controller: no objects of the cluster (the API server has those) and no
// secrets.
func (c *controller) dump() map[string]func() (any, error) {
	return map[string]func() (any, error){
		"settings":  func() (any, error) { return c.conf.Values(), nil },
		"readiness": func() (any, error) { return c.ready.Pending(), nil },
		"authority": func() (any, error) { return c.dumpAuthority(), nil },
	}
}

type authorityDump struct {
	NotAfter time.Time `json:"notAfter"`
	Brought  bool      `json:"brought"`
	Rotating bool      `json:"rotating"`
	Roots    []string  `json:"roots"`
	Trouble  string    `json:"trouble,omitempty"`
}

func (c *controller) dumpAuthority() authorityDump {
	st := c.authority.Status()
	d := authorityDump{NotAfter: st.NotAfter, Brought: st.Brought, Rotating: st.Rotating}
	if st.Trouble != nil {
		d.Trouble = st.Trouble.Error()
	}
	if b := c.authority.Bundle(); b != nil {
		for _, cert := range b.Certificates() {
			d.Roots = append(d.Roots, cert.Subject.String()+", until "+cert.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return d
}
