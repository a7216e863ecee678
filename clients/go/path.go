package gatekey

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// PathError means that no resource can have the path: the request with the id is invalid.
type PathError struct {
	message string
}

// Error describes the problem. It does not hold the id.
func (e *PathError) Error() string {
	return "gatekey: " + e.message
}

// plain lists the characters, besides letters and digits, that a segment of a path holds unencoded.
const plain = "-._~!$&'()+,;=:@"

// Path returns the path of a resource from alternating collections and ids: Path("shipments", id). Each id becomes one
// segment, whatever it holds. Characters that a segment cannot hold are percent-encoded, "%" and "/" included, so that
// different ids are different segments. The error is a *PathError if an id is empty, ".", ".." or "*", holds a control
// character or is not UTF-8, and if a collection has no id.
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
