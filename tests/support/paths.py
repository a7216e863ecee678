"""Which path the ids of a resource make: the same in every client."""

PATHS: dict[tuple[str, ...], str | None] = {
    ("shipments", "s1"): "shipments/s1",
    ("domains", "acme.com", "links", "abc"): "domains/acme.com/links/abc",
    # What stands for itself.
    ("x", "AZaz09-._~!$&'()+,;=:@"): "x/AZaz09-._~!$&'()+,;=:@",
    ("x", "..."): "x/...",
    ("x", "-"): "x/-",
    # What does not.
    ("x", "a/b"): "x/a%2Fb",
    ("x", "../y/1"): "x/..%2Fy%2F1",
    ("x", "/"): "x/%2F",
    ("x", "a%2Fb"): "x/a%252Fb",
    ("x", "%"): "x/%25",
    ("x", "%2F"): "x/%252F",
    ("x", "a*"): "x/a%2A",
    ("x", "**"): "x/%2A%2A",
    ("x", " "): "x/%20",
    ("x", "spring sale"): "x/spring%20sale",
    ("x", "1+1"): "x/1+1",
    ("x", 'a\\b?c#d"e<f>g[h]i^j`k{l}m|n'): "x/a%5Cb%3Fc%23d%22e%3Cf%3Eg%5Bh%5Di%5Ej%60k%7Bl%7Dm%7Cn",
    ("x", "café"): "x/caf%C3%A9",
    ("x", "cafe\u0301"): "x/cafe%CC%81",
    ("x", "😀"): "x/%F0%9F%98%80",
    ("x", "\ufeff\u00a0\u0085\u2028"): "x/%EF%BB%BF%C2%A0%C2%85%E2%80%A8",
    ("a b", "c"): "a%20b/c",
    # What is no id.
    ("x", ""): None,
    ("", "x"): None,
    ("x", "."): None,
    ("x", ".."): None,
    ("x", "*"): None,
    ("x", "a\0"): None,
    ("x", "a\nb"): None,
    ("x", "a\n"): None,
    ("x", "\x1f"): None,
    ("x", "\x7f"): None,
    ("x", "1", "y", ""): None,
    # A collection without an id.
    (): None,
    ("x",): None,
    ("x", "1", "y"): None,
}
"""The path of each, or None where there is none."""
