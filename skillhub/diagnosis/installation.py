"""Checks of what is installed: Python, this package and those it needs, the optional ones, and the namesakes of ours."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from skillhub import __version__
from skillhub.diagnosis.checks import OK, PROBLEM, WARNING, Check

DISTRIBUTION = "skillhub-packs"
_PACKAGE = "skillhub"
_MINIMUM = (3, 11)
_EXTRAS = {"torch": "models", "transformers": "models"}
_CUDA = re.compile(r"^cuda\b[^=]*=\s*'([^']+)'", re.MULTILINE)


def check_installation() -> Iterator[Check]:
    """Yield the checks of what is installed."""
    yield _check_python()
    yield from _check_namesakes()
    yield _check_command()
    yield _check_requirements()
    yield _check_extras()
    yield _check_device()


def _check_python() -> Check:
    told = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, in {sys.prefix}."
    if sys.version_info < _MINIMUM:
        return Check("python", PROBLEM, told, f"Use Python {'.'.join(map(str, _MINIMUM))} or later.")
    return Check("python", OK, told)


def _check_namesakes() -> Iterator[Check]:
    """Look for distributions of others that have a package of our name: they write into the same folder."""
    strangers = sorted({one.name for one in distributions() if one.name != DISTRIBUTION and _has_our_package(one)})
    here = Path(__file__).parents[1]
    told = f"{DISTRIBUTION} {__version__}, in {here}."
    if not strangers:
        yield Check("skillhub", OK, told)
    for stranger in strangers:
        yield Check(
            "skillhub",
            PROBLEM,
            f"{stranger} is installed, which is not ours and has the same import name, {_PACKAGE}.",
            f"Remove it, and restore ours: pip uninstall {stranger}; pip install --force-reinstall {DISTRIBUTION}.",
        )


def _has_our_package(distribution: Distribution) -> bool:
    files = distribution.read_text("RECORD") or distribution.read_text("SOURCES.txt") or ""
    names = (distribution.read_text("top_level.txt") or "").split()
    return _PACKAGE in names or re.search(rf"^{_PACKAGE}/__init__\.py\b", files, re.MULTILINE) is not None


def _check_command() -> Check:
    found = shutil.which(_PACKAGE)
    if found is None:
        return Check("command", OK, f"`{_PACKAGE}` is not on the PATH; `python -m {_PACKAGE}` works as well.")
    ours = Path(sysconfig.get_path("scripts"))
    if Path(found).parent.resolve() != ours.resolve():
        return Check(
            "command",
            WARNING,
            f"`{_PACKAGE}` on the PATH is {found}, of another installation than this one.",
            f"Put {ours} first on the PATH, or activate its environment.",
        )
    return Check("command", OK, f"`{_PACKAGE}` on the PATH is this one.")


def _check_requirements() -> Check:
    """Compare what is installed with what our distribution requires."""
    name = "packages"
    try:
        required = [Requirement(text) for text in Distribution.from_name(DISTRIBUTION).requires or ()]
    except PackageNotFoundError:
        return Check(name, WARNING, f"{DISTRIBUTION} is not installed; this runs from its source.", "pip install -e .")
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [text for one in needed if (text := _wrong(one))]
    if wrong:
        return Check(name, PROBLEM, f"{'; '.join(wrong)}.", f"Install them anew: pip install --upgrade {DISTRIBUTION}.")
    told = ", ".join(f"{one.name} {version(one.name)}" for one in needed)
    return Check(name, OK, f"All {len(needed)} that are needed are there: {told}.")


def _wrong(required: Requirement) -> str | None:
    try:
        found = version(required.name)
    except PackageNotFoundError:
        return f"{required.name} is missing"
    fits = required.specifier.contains(found, prereleases=True)
    return None if fits else f"{required.name} is {found}, and {required.specifier} is needed"


def _check_extras() -> Check:
    found = {name: _version(name) for name in _EXTRAS}
    missing = [name for name, one in found.items() if one is None]
    if missing:
        return Check(
            "models",
            OK,
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed. Installing packs works without.",
            f"To build, try and fuse packs: pip install '{DISTRIBUTION}[models]'.",
        )
    return Check("models", OK, f"{', '.join(f'{name} {one}' for name, one in found.items())}.")


def _version(name: str) -> str | None:
    try:
        return version(name) if find_spec(name) else None
    except PackageNotFoundError:
        return "of unknown version"


def _check_device() -> Check:
    """Say whether torch can use a GPU, from its own build note and the driver's presence; torch itself is not loaded."""
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return Check("device", OK, f"{'An NVIDIA driver is' if has_driver else 'No NVIDIA driver is'} there; no torch.")
    note = Path(spec.origin).with_name("version.py")
    cuda = _CUDA.search(note.read_text(encoding="utf-8")) if note.is_file() else None
    if has_driver and cuda is None:
        return Check(
            "device",
            WARNING,
            "An NVIDIA driver is there, and torch is built for the CPU only.",
            "Install a build for your GPU: see pytorch.org/get-started.",
        )
    if cuda and has_driver:
        return Check("device", OK, f"torch is built for CUDA {cuda[1]}, and an NVIDIA driver is there.")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Check("device", OK, "torch can use the GPU of this Mac (MPS).")
    return Check("device", OK, f"torch uses the CPU{' (it is built for CUDA, without a driver here)' if cuda else ''}.")
