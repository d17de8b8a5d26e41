"""Checking that a model in memory is the base that packs were made for, by its weights and not by its name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from skillhub.basemodel import CONFIG_FILE
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.compose.recipes import Recipe
from skillhub.compose.sidepaths import is_hidden, readable
from skillhub.errors import SkillhubError, UsageError, WrongBaseError
from skillhub.fingerprint import BaseRecord, fingerprint_checkpoint
from skillhub.layout import Layout, Slot, fingerprint_slots, record_slot
from skillhub.manifest import BASE_RECORD_FILE
from skillhub.mismatch import explain_mismatch
from skillhub.packs import Pack, check_file, describe_base

VERIFICATIONS = ("auto", "full", "sample")
"""``full`` hashes every weight, ``sample`` checks all names and shapes and some weights; ``auto`` samples large models."""

LARGE_MODEL_BYTES = 8 * 10**9
SAMPLE_BYTES = 10**9

Originals = Mapping[str, torch.Tensor]


def verify_base(
    model: Any,
    layout: Layout,
    recipe: Recipe,
    fingerprints: list[str],
    *,
    originals: Originals,
    verify: str = "auto",
    trust_base: bool = False,
) -> str | None:
    """Return which of the packs' bases a model is; None where no pack says what its base is.

    A quantized model is verified by the folder that it was loaded from.

    Args:
        model: the model.
        layout: its tensors by canonical name.
        recipe: the packs, for the message.
        fingerprints: of the bases that all of them have a variant for.
        originals: what the tensors held that packs have been grafted onto.
        verify: one of :data:`VERIFICATIONS`.
        trust_base: believe that the model is the packs' only base.

    Raises:
        WrongBaseError: it is none of them; the message says how it differs.
        UsageError: ``verify`` is unknown, or the base is to be trusted and the packs have several.
    """
    if verify not in VERIFICATIONS:
        raise UsageError(f"There is no verification {verify!r}.", hint=f"Use one of: {', '.join(VERIFICATIONS)}.")
    if not fingerprints:
        return None
    if trust_base and len(fingerprints) == 1:
        return fingerprints[0]
    if is_hidden(layout):
        return _verify_source(model, layout, recipe, fingerprints, originals)
    records = base_records(recipe, fingerprints)
    if verify == "sample" or (verify == "auto" and _bytes(layout) > LARGE_MODEL_BYTES):
        for fingerprint, record in records.items():
            if _sample_agrees(layout, record, originals):
                return fingerprint
    actual = fingerprint_slots(layout, originals)
    if actual.fingerprint in fingerprints:
        return actual.fingerprint
    if any(slot.dtype == torch.float16 for slot in layout.slots.values()):
        source = _source_fingerprint(model, layout, originals)
        if source in fingerprints:
            return source
    if trust_base:
        raise UsageError(
            "The packs are for several bases, and the model is exactly none of them.",
            hint="Give packs of one base, or the base model itself.",
        )
    raise wrong_base(recipe, records, actual)


def fingerprint_of(model: Any, layout: Layout, originals: Originals) -> str:
    """Return a model's fingerprint as it was before packs; of a quantized model that of the folder it was loaded from.

    Raises:
        UsageError: it is quantized, and that folder is not known.
    """
    if not is_hidden(layout):
        return fingerprint_slots(layout, originals).fingerprint
    found = _source_fingerprint(model, readable(layout), originals)
    if found is None:
        raise UsageError(
            "The model is quantized, and the base that it was made from is not at hand to tell which pack is meant.",
            hint="Give environment=… (a project's folder), or the pack's folder.",
        )
    return found


def _verify_source(
    model: Any, layout: Layout, recipe: Recipe, fingerprints: Sequence[str], originals: Originals
) -> str:
    """Return the fingerprint of the folder that a quantized model was loaded from, if it is one of the packs' bases."""
    source = _source_fingerprint(model, readable(layout), originals)
    if source is not None and source in fingerprints:
        return source
    fits = ", ".join(describe_base(one) for one in recipe.skill_packs[0].manifest.variants)
    what = "was not loaded from a folder that is still here" if source is None else "was loaded from another base"
    raise WrongBaseError(
        f"The model is quantized, so its weights do not tell whether it is the packs' base ({fits}), and it {what}.",
        hint="Load the packs' base from its folder and let transformers quantize it; or pass trust_base=True if you know that the "
        "model was made from it.",
        fits=[one.base.fingerprint for one in recipe.skill_packs[0].manifest.variants],
    )


def wrong_base(recipe: Recipe, records: Mapping[str, BaseRecord], actual: BaseRecord) -> SkillhubError:
    """Return the error for a base that the packs were not made for: what it is instead, in a sentence."""
    pack = recipe.skill_packs[0]
    fits = ", ".join(describe_base(one) for one in pack.manifest.variants)
    difference = " ".join(explain_mismatch(record, actual) for record in list(records.values())[:1])
    return WrongBaseError(
        f"{pack} does not fit this model; it is for {fits}. {difference}".strip(),
        hint="Load the base model that the pack was made for, unchanged and not in float16.",
        fingerprint=actual.fingerprint,
        fits=[one.base.fingerprint for one in pack.manifest.variants],
    )


def _read_base_record(pack: Pack, fingerprint: str) -> BaseRecord:
    """Read a variant's ``base.json.zst``.

    Raises:
        IntegrityError: it is missing or damaged.
        WrongBaseError: the pack has no such variant.
    """
    variant = pack.variant_for(fingerprint)
    path = f"{variant.folder}/{BASE_RECORD_FILE}"
    for entry in variant.files:
        if entry.path == path:
            check_file(pack.path_of(entry), entry)
    return BaseRecord.from_bytes((pack.folder / path).read_bytes())


def base_records(recipe: Recipe, fingerprints: Iterable[str]) -> dict[str, BaseRecord]:
    """Return the records of the bases that the first pack has at hand; an installed pack has one variant's files only."""
    pack = recipe.skill_packs[0]
    return {
        fingerprint: _read_base_record(pack, fingerprint)
        for fingerprint in fingerprints
        if (pack.folder / pack.variant_for(fingerprint).folder / BASE_RECORD_FILE).is_file()
    }


def _sample_agrees(layout: Layout, expected: BaseRecord, originals: Originals) -> bool:
    """Say whether all names and shapes, and the content of evenly chosen tensors of about a gigabyte, are the base's."""
    records = {record.name: record for record in expected.tensors}
    if any(name not in layout.slots or layout.slots[name].shape != one.shape for name, one in records.items()):
        return False
    if layout.slots.keys() - records.keys():  # perhaps tied copies; the full fingerprint knows
        return False
    size, sample = 0, []
    for name in sorted(records, key=lambda name: records[name].digest):  # as good as random, and always the same
        sample.append(name)
        size += _slot_bytes(layout, name)
        if size > SAMPLE_BYTES:
            break
    found = ((records[name], record_slot(layout.slots[name], originals.get(name))) for name in sample)
    return all((one.kind, one.digest) == (other.kind, other.digest) for one, other in found)


def _source_fingerprint(model: Any, layout: Layout, originals: Originals) -> str | None:
    """Return the fingerprint of the folder that a model was loaded from, where it still is there and so loaded.

    For models whose weights do not tell what they were: bfloat16 weights do not survive float16 (small ones lose bits), nor
    quantization. The folder counts where every tensor that can be read is its, cast to the dtype that it has in memory.
    """
    folder = Path(str(getattr(model, "name_or_path", "") or ""))
    if not (folder / CONFIG_FILE).is_file():
        return None
    source = open_checkpoint(folder)
    if not all(_is_cast_of(source, slot, originals.get(name)) for name, slot in layout.slots.items()):
        return None
    return fingerprint_checkpoint(folder).fingerprint


def _is_cast_of(source: Checkpoint, slot: Slot, original: torch.Tensor | None) -> bool:
    if source.aliases.get(slot.name, slot.name) not in source.tensors:
        return False
    present = (slot.read() if original is None else original).cpu()
    expected = source.tensor(slot.name).to(present.dtype)
    return expected.shape == present.shape and bool(torch.equal(_bits(expected), _bits(present)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, which compare equal for NaN too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _bytes(layout: Layout) -> int:
    return sum(_slot_bytes(layout, name) for name in layout.slots)


def _slot_bytes(layout: Layout, name: str) -> int:
    slot = layout.slots[name]
    return math.prod(slot.shape) * slot.dtype.itemsize
