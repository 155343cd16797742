"""Tests keep their cache to themselves."""

import os
from tempfile import TemporaryDirectory

_CACHE = TemporaryDirectory(prefix="editkit-tests-")
os.environ["EDITKIT_CACHE"] = _CACHE.name
