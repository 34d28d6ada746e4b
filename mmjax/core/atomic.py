"""Writing small files atomically."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import Any


def write_atomically(path: Any, content: str | bytes, *, sync: bool = False) -> None:
    """Replaces the file at ``path``, so that a killed process leaves the old or the new content.

    Args:
      path: a ``pathlib.Path`` or ``epath.Path``, also of a ``gs://`` bucket, whose objects are atomic by themselves.
      content: the whole content; text is encoded as UTF-8.
      sync: also survive a crash of the machine (``fsync``).
    """
    data = content.encode() if isinstance(content, str) else content
    if str(path).startswith("gs://"):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
