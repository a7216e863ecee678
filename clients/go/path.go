package gatekey

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// PathError says that no resource can have the path: for whoever sent the id, a request that makes no sense.
type PathError struct {
	message string
}

// Error says what is wrong; it does not hold the id.
func (e *PathError) Error() string {
	return "gatekey: " + e.message
}

// plain are the characters, beside letters and digits, that a segment of a path may hold as they are.
const plain = "-._~!$&'()+,;=:@"

// Path makes the path of a resource of collections and ids in turns: Path("shipments", id). Each id is one segment,
// whatever it holds: what cannot stand in a segment is percent-encoded, "%" and "/" included, so that different ids are
// different segments. The error is a *PathError, where an id is empty, ".", ".." or "*", holds a control character or is
// not UTF-8, and where a collection is without an id.
func Path(segments ...string) (string, error) {
	if len(segments) == 0 || len(segments)%2 != 0 {
		return "", &PathError{"a path has collections and ids in turns, and the last one is an id"}
	}
	var path strings.Builder
	for i, segment := range segments {
		if i > 0 {
			path.WriteByte('/')
		}
		if err := encode(&path, segment); err != nil {
			return "", err
		}
	}
	return path.String(), nil
}

func encode(path *strings.Builder, id string) error {
	switch {
	case id == "" || id == "." || id == ".." || id == "*":
		return &PathError{fmt.Sprintf("an id is %q", id)}
	case strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return &PathError{"an id holds a control character"}
	case !utf8.ValidString(id):
		return &PathError{"an id is not UTF-8"}
	}
	for _, b := range []byte(id) {
		letter := 'a' <= b|0x20 && b|0x20 <= 'z'
		if letter || '0' <= b && b <= '9' || strings.IndexByte(plain, b) >= 0 {
			path.WriteByte(b)
		} else {
			fmt.Fprintf(path, "%%%02X", b)
		}
	}
	return nil
}
