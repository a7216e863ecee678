"""Reading files that are read more than once: by several processes, or again when they change."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file. Others, such as pipes, could be read once or never. Raises `OSError` and `ValueError`."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise ValueError("is no regular file, and is read more than once")
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise
