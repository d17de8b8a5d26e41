"""Inner loops that numpy has no words for, as machine code.

numba translates a function when it is called first, for the types of its arguments (about a second each), and keeps the result on the disk.
What is decoded and grafted by such functions is computed in integers alone, so it is the same on every machine. Indices are not
checked in them: whoever writes one proves that they are inside (``tests/test_compiled.py`` has numba check them).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., object])


class _Cache(FunctionCache):
    """Machine code on the disk, as far as there is room for it: a full disk keeps nobody from running what was translated."""

    def save_overload(self, signature: Any, data: Any) -> None:
        """Keep what was translated, if that can be written."""
        with suppress(OSError):
            super().save_overload(signature, data)  # type: ignore[no-untyped-call]


def compiled(function: F) -> F:
    """Return ``function`` as machine code that runs without Python's lock.

    Where neither the package's folder nor the user's cache can be written, it is translated anew in each process.
    """
    translated: Any = numba.njit(nogil=True)(function)
    with suppress(RuntimeError):  # no place for a cache
        translated._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(F, translated)
