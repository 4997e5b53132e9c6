"""A copy of the tree, in which the code may be broken while the tree itself is worked on."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("noise", "tun", "wgpy", "controller", "tests", "setup.cfg", "pyproject.toml")


def refresh(copy: Path) -> None:
    """Make ``copy`` what the tree is now. A file that has not changed keeps its time, which is how mutmut knows it."""
    wanted: set[Path] = set()
    for part in PARTS:
        source = ROOT / part
        for path in source.rglob("*") if source.is_dir() else (source,):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add(path.relative_to(ROOT))
    for name in sorted(wanted):
        source, target = ROOT / name, copy / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for part in PARTS:
        for folder, _, files in os.walk(copy / part):
            for file in files:
                stale = Path(folder, file)
                if "__pycache__" not in stale.parts and stale.relative_to(copy) not in wanted:
                    stale.unlink()
