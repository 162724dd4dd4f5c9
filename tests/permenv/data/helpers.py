"""What the tests of data share: files that cannot be opened."""

import os
from pathlib import Path

import pytest


def fail_to_open(patch: pytest.MonkeyPatch, name: str, fault: OSError) -> None:
    """Let every attempt to open a file of this name fail; the super-user of a container may read all files."""
    opened = os.open

    def open_others(path, *args, **options):
        if Path(path).name == name:
            raise fault
        return opened(path, *args, **options)

    patch.setattr(os, "open", open_others)
