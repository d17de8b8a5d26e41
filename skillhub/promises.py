"""Whether a pack decodes to what its manifest promises, where that takes the base: the tensors that it restores bit for bit.

Files that are those of the manifest decode to what it promises on every machine, so comparing them says all of other tensors. What restored tensors
decode to depends on the base's exact values too, of which a fingerprint sees those of bfloat16 only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skillhub.bases import cached_base, locate_base
from skillhub.errors import IntegrityError, SkillhubError, missing_extra
from skillhub.packs import Pack, base_text
from skillhub.progress import Progress

RESTORING = "lossless"
"""The codec that restores; named here, as commands that only compare files load no codec."""


@dataclass(frozen=True)
class Restoration:
    """What came of decoding the tensors that a pack restores.

    Attributes:
        pack: the pack.
        tensors: how many it restores.
        base: the base's folder, where they were decoded.
        reason: why they were not; one sentence.
        findings: what does not decode to what the manifest promises.
    """

    pack: Pack
    tensors: int
    base: Path | None = None
    reason: str = ""
    findings: tuple[IntegrityError, ...] = ()


def check_restored(
    pack: Pack, fingerprint: str, base: str | Path | None = None, *, progress: Progress | None = None
) -> Restoration | None:
    """Decode the tensors that a pack restores, and compare them with the manifest's digests; None where it restores none.

    Args:
        pack: the pack, whose files are known to be whole.
        fingerprint: of the base whose variant is meant.
        base: folder or repository of the base; None looks for the one that the manifest names in the Hub's cache.
        progress: called with (the pack, tensors decoded, all of them).

    Raises:
        NotFoundError: there is no such ``base``.
        NetworkError: the Hub cannot be reached for it.
    """
    variant = pack.variant_for(fingerprint)
    names = [name for name, entry in sorted(variant.codec.tensors.items()) if RESTORING in entry.codecs]
    if not names:
        return None
    if base is not None:
        found: Path | None = locate_base(base)
    else:
        found = cached_base(variant.base.repo, variant.base.revision) if variant.base.repo else None
    if found is None:
        wanted = base_text(fingerprint, variant.base.repo)
        return Restoration(pack, len(names), reason=f"Its base {wanted} is not in the Hub's cache on this machine.")
    from skillhub.fingerprint import fingerprint_checkpoint  # numpy: only for packs that restore

    try:
        if fingerprint_checkpoint(found).fingerprint != fingerprint:
            return Restoration(pack, len(names), reason=f"{found} is another base.")
        findings = _decode(pack, fingerprint, names, found, progress)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if not isinstance(missing, SkillhubError):
            raise
        return Restoration(pack, len(names), reason=missing.message)
    except SkillhubError as error:  # the base cannot be read, or differs by less than its fingerprint sees
        return Restoration(pack, len(names), reason=error.message)
    return Restoration(pack, len(names), found, findings=findings)


def _decode(
    pack: Pack, fingerprint: str, names: list[str], base: Path, progress: Progress | None
) -> tuple[IntegrityError, ...]:
    """Decode tensors with a base; return an error for each that is not what the manifest promises.

    Raises:
        WrongBaseError: the base's tensors are not bit for bit those that the pack was made with.
    """
    from skillhub.checkpoints import open_checkpoint
    from skillhub.packdeltas import open_delta

    delta, findings = open_delta(pack, fingerprint, open_checkpoint(base)), []
    for number, name in enumerate(names):
        try:
            delta.restored(name)
        except IntegrityError as error:
            findings.append(error)
        if progress:
            progress(str(pack), number + 1, len(names))
    return tuple(findings)
