"""Building a pack of a PEFT adapter: its factors as they are, and what was trained as a whole beside them bit for bit.

A pack of an adapter is pinned to its base by fingerprint, carries a routing card, and is resolved, locked and composed like any
other; grafted it computes what the adapter does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from skillhub.adapters import Adapter, open_adapter
from skillhub.authorfile import AuthorFile
from skillhub.bases import find_base
from skillhub.bfloat16 import FLOATS
from skillhub.canonical import is_vocabulary_tensor
from skillhub.checkpoints import Checkpoint, open_checkpoint
from skillhub.codecs import EncodedPart, EncodedTensor, content_digest, decode, exact, factors, sparse
from skillhub.deltafiles import DeltaWriter
from skillhub.errors import UsageError, WrongBaseError
from skillhub.files import new_folder, staged_folder
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.interop.adapterdeltas import AdapterDelta, StoredDelta, open_adapter_delta, target_of
from skillhub.manifest import CodecInfo, TensorEntry, variant_folder
from skillhub.packer import bits_per_weight, finish_pack, write_card
from skillhub.packs import Pack, open_pack
from skillhub.progress import Notice, Progress, silence
from skillhub.prompts import check_prompts

PRESET = "lora"
"""What the manifest calls the preset of such a pack."""

MOSTLY_CHANGED = 0.25
"""Share of changed weights from which their places are not worth storing."""


def pack_adapter(
    adapter: str | Path | Adapter,
    base: str | Path | None,
    out: str | Path,
    *,
    metadata: AuthorFile,
    prompts: Sequence[str] | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Pack:
    """Build the pack of a LoRA adapter of peft, with one variant for its base.

    Factors keep their values and dtype, whatever their rank and scale (rsLoRA, ``rank_pattern``, ``alpha_pattern``); biases, and
    modules that were trained as a whole (``modules_to_save``, resized embeddings), become exact differences to the base. A pack is
    thus about as large as the adapter's file.

    Args:
        adapter: its folder, as peft's ``save_pretrained`` wrote it.
        base: the base model that it was trained on, a folder or ``repo[@revision]``; None takes the one that the adapter declares.
        out: folder of the new pack; it must not exist yet, or be empty.
        metadata: name, version and what else the author says.
        prompts: what users of the pack might write, for its routing card, as for ``skillhub.pack``.
        progress: called with (what, tensors or prompts done, all of them).
        notice: told what the routing card is worth, and what could not be verified or kept as factors.

    Returns:
        The pack, opened.

    Raises:
        UsageError: the adapter is of a kind that is no difference of weights (DoRA and others, by name), changes nothing, names no
            base and none is given; or as ``skillhub.pack``.
        WrongBaseError: the adapter changes something that the base does not have, or in another shape.
        NotFoundError, UnsafeContentError, IntegrityError: a file cannot be read.
        DiskError: the disk is full or ``out`` may not be written.
    """
    check_prompts(prompts, metadata.skills.prompts)
    manifest, out, tell = metadata.to_manifest(), new_folder(out), notice or silence
    adapter = adapter if isinstance(adapter, Adapter) else open_adapter(adapter)
    found = find_base(base or _declared_base(adapter))
    checkpoint = open_checkpoint(found.folder)
    delta = open_adapter_delta(adapter, target_of(checkpoint))
    _check_tensors(delta, checkpoint)
    declared = adapter.config.base
    if declared and found.repo and declared.lower() != found.repo.lower():
        tell(f"{adapter} declares {adapter.declared_base} as its base, and is packed for {found.repo}.")
    record = fingerprint_checkpoint(found.folder)
    with staged_folder(out, is_new=True) as staged:
        folder = staged / variant_folder(record.fingerprint)
        folder.mkdir(parents=True)
        router = write_card(found.folder, folder, prompts, metadata.skills.prompts, progress, notice)
        tensors = _write_delta(delta, folder, progress, tell)
        codec = CodecInfo(preset=PRESET, bits_per_weight=bits_per_weight(tensors, checkpoint), tensors=tensors)
        finish_pack(staged, folder, manifest, found, record, codec, router)
    return open_pack(out)


def _declared_base(adapter: Adapter) -> str:
    config = adapter.config
    if config.base is None:
        raise UsageError(
            f"{adapter} does not say which model it was trained on.",
            hint="Name its base, a folder or REPO, with --base.",
        )
    return config.base + (f"@{config.base_revision}" if config.base_revision else "")


def _check_tensors(delta: AdapterDelta, checkpoint: Checkpoint) -> None:
    """Refuse what grafting and fusing would: changes of quantized tensors, and of sizes that the base's config fixes."""
    for name in delta.names:
        base, shape = checkpoint.tensors.get(name), tuple(delta.entry(name).shape)
        if base is None:
            raise WrongBaseError(
                f"{delta.pack} changes {name}, which {checkpoint.folder} lacks.",
                hint="Give the base model that the adapter was trained on.",
                tensor=name,
            )
        if base.dtype not in FLOATS:
            raise UsageError(
                f"{name} is stored as {base.dtype} in the base, to which a difference cannot be added.",
                hint="Give the base as it was before it was quantized.",
                tensor=name,
            )
        if shape != base.shape and not is_vocabulary_tensor(name):
            raise WrongBaseError(
                f"{name} is {list(base.shape)} in the base and {list(shape)} in {delta.pack}.",
                hint="Give the base model that the adapter was trained on.",
                tensor=name,
            )


def _write_delta(delta: AdapterDelta, folder: Path, progress: Progress | None, tell: Notice) -> dict[str, TensorEntry]:
    """Encode every tensor that changes into the variant's files; return what the manifest says of each."""
    writer, entries, multiplied = DeltaWriter(folder), {}, []
    for number, name in enumerate(delta.names):
        stored = delta.stored(name)
        encoded = _encode(delta, name, stored)
        if encoded is not None:
            writer.add(name, encoded)
            entries[name] = _entry(encoded, stored)
            if stored.factors is None and stored.max_error and encoded.shape[1:]:
                multiplied.append(name)
        if progress:
            progress("Encoding", number + 1, len(delta.names))
    writer.close()
    if not entries:
        raise UsageError(f"{delta.pack} changes no weight of its base.", hint="Give an adapter that was trained.")
    if multiplied:
        tell(
            f"{multiplied[0]} and {len(multiplied) - 1} more tensors of the checkpoint are not those of a module with factors, so "
            "their products are stored."
        )
    return entries


def _encode(delta: AdapterDelta, name: str, stored: StoredDelta) -> EncodedTensor | None:
    """Encode a tensor; None where it does not change."""
    parts: tuple[EncodedPart, ...] = ()
    if stored.dense is not None and bool(stored.dense.any()):
        parts = _encode_dense(stored.dense)
    if stored.factors is not None:
        try:
            parts = (*parts, factors.encode(stored.factors))
        except ValueError as error:
            raise UsageError(
                f"The factors that {delta.pack} has of {name} cannot be kept: {error}.",
                hint="Merge the adapter into its base with peft (merge_and_unload), then pack the result: skillhub pack.",
                tensor=name,
            ) from error
    return EncodedTensor(tuple(delta.entry(name).shape), parts) if parts else None


def _encode_dense(dense: torch.Tensor) -> tuple[EncodedPart, ...]:
    """Encode a difference bit for bit: all of it, or where few weights changed, only those."""
    parts: tuple[EncodedPart, ...] = exact.encode(dense).parts
    if int(dense.count_nonzero()) > MOSTLY_CHANGED * dense.numel():
        return parts
    changes = (sparse.encode(dense),)
    return min(parts, changes, key=lambda one: EncodedTensor(tuple(dense.shape), one).nbytes)


def _entry(encoded: EncodedTensor, stored: StoredDelta) -> TensorEntry:
    return TensorEntry(
        shape=list(encoded.shape),
        change="delta",
        codecs=[part.codec for part in encoded.parts],
        bytes=encoded.nbytes,
        relative_error=0.0,
        max_error=stored.max_error,
        digest=content_digest(encoded, decode(encoded)),
    )
