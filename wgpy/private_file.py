"""Files with secrets, and whatever else has to outlive a power cut: the data plane's, the agent's and the signer's."""

import contextlib
import os
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Replace ``path`` by a file that only its owner may read (0600), whole or not at all; on return it is on the disk, name
    and all. Raises OSError.

    For one process at a time: what a crash leaves of it lies beside ``path`` under one name, and the next one clears that."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.unlink(missing_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
