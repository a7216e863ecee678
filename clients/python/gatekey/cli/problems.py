"""How commands end when they cannot do what they were asked."""


class Failure(Exception):
    """The command failed: a line, and more lines where there is more to say. Ends with exit code 1."""

    def __init__(self, message: str, *more: str) -> None:
        super().__init__(message)
        self.message = message
        self.more = more
