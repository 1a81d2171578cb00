"""edgeopt: turns every model dropped into a folder into the fastest version that this device can run and that is still right.

The public face: :func:`optimize` and :func:`load`. Importing this package imports nothing heavy; the passes are
importable one by one from :mod:`edgeopt.passes`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("edgeopt")
except PackageNotFoundError:  # run from a source tree that nobody installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
