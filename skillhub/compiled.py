"""Inner loops that numpy has no words for, as machine code.

numba translates a function when it is called first, for the types of its arguments, and keeps the result on the disk. Functions that are so
compiled stick to integers, and to fp32 sums that are each rounded once (numba fuses and reorders nothing unless asked to): their results are the
same on every machine. Indices are not checked in them: whoever writes one proves that they are inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Return ``function`` as machine code that runs without Python's lock.

    Where neither the package's folder nor the user's cache can be written, it is translated anew in each process.
    """
    try:
        translated = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place for the cache
        translated = numba.njit(nogil=True)(function)
    return cast(F, translated)
