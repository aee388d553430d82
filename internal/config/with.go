package config

import "bytes"

// LoadWith reads the configuration with a request that was not written to a file.
func (d Dirs) LoadWith(r Request) (*Config, error) {
	config, err := d.Load("")
	if err != nil {
		return nil, err
	}
	content, err := r.encode()
	if err != nil {
		return nil, err
	}
	return config, config.parse(bytes.NewReader(content), "the request", true)
}
