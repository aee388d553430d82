package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Source is where an updates image is, and its checksum.
type Source struct {
	Location string // a path, or a URL of http or https
	SHA256   string // 64 hex digits, or "" for none
}

// ParseSource reads PATH or URL, with ",sha256=" and a checksum after it or not.
func ParseSource(text string) (Source, error) {
	location, sum, found := strings.Cut(text, ",sha256=")
	source := Source{Location: location, SHA256: sum}
	if location == "" {
		return Source{}, fmt.Errorf("%q names no image", text)
	}
	if found && !isSHA256(sum) {
		return Source{}, source.badSum()
	}
	return source, nil
}

// Open opens the image for Read. What has a checksum is first copied, limit bytes at most, to a file in the directory dir that has
// no name and goes when it is closed, and is checked there: nobody can change it between. A download must have a checksum; a
// directory cannot. Nothing is tried twice.
func (s Source) Open(ctx context.Context, limit int64, dir string) (*os.File, error) {
	image, err := s.open(ctx, limit, dir)
	if err != nil {
		return nil, fmt.Errorf("updates image %q: %w", s.name(), err)
	}
	return image, nil
}

func (s Source) open(ctx context.Context, limit int64, dir string) (*os.File, error) {
	if s.SHA256 != "" && !isSHA256(s.SHA256) {
		return nil, s.badSum()
	}
	scheme, _, isURL := strings.Cut(s.Location, "://")
	switch {
	case !isURL:
		return s.local(ctx, limit, dir)
	case !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return nil, errors.New("only http and https are known")
	case s.SHA256 == "":
		return nil, errors.New("what is fetched from a URL needs a checksum: give its sha256")
	}
	return s.download(ctx, limit, dir)
}

func (s Source) local(ctx context.Context, limit int64, dir string) (*os.File, error) {
	file, err := os.OpenFile(s.Location, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would wait for somebody to write
	if err != nil {
		return nil, err
	}
	if s.SHA256 == "" {
		return file, nil
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it has a checksum, but only a file can")
	}
	return s.private(ctx, file, limit, dir)
}

func (s Source) download(ctx context.Context, limit int64, dir string) (*os.File, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Location, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept-Encoding", "identity") // the checksum is of the file as it is
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers %s", response.Status)
	}
	if response.ContentLength > limit {
		return nil, tooLong(limit)
	}
	return s.private(ctx, response.Body, limit, dir)
}

// private copies an image to a file that only this process has, and checks it.
func (s Source) private(ctx context.Context, from io.Reader, limit int64, dir string) (_ *os.File, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0o600) // O_EXCL: nobody can give it a name
	if err != nil {
		return nil, fmt.Errorf("a file without a name in %s: %w", dir, err)
	}
	image := os.NewFile(uintptr(fd), s.name())
	defer func() {
		if err != nil {
			image.Close()
		}
	}()
	digest := sha256.New()
	from = &limited{ctx: ctx, from: from, left: limit + 1, tooLarge: func() error { return tooLong(limit) }}
	if _, err := io.Copy(io.MultiWriter(image, digest), from); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(digest.Sum(nil)); !strings.EqualFold(got, s.SHA256) {
		return nil, fmt.Errorf("its sha256 is %s, and not %s: it is not the image that was meant, or it is damaged", got, s.SHA256)
	}
	return image, nil
}

// name is the location without a password.
func (s Source) name() string {
	if location, err := url.Parse(s.Location); err == nil && location.User != nil {
		return location.Redacted()
	}
	return s.Location
}

func (s Source) badSum() error {
	return fmt.Errorf("the checksum %q is no sha256: 64 hex digits", s.SHA256)
}

func isSHA256(text string) bool {
	sum, err := hex.DecodeString(text)
	return err == nil && len(sum) == sha256.Size
}

func tooLong(limit int64) error {
	return fmt.Errorf("it has more than %d bytes, which is the limit", limit)
}
