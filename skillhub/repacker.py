"""Making a pack of what a grafted model became: packs that were composed, and what was trained since."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skillhub.authorfile import AuthorFile
from skillhub.basemodel import CONFIG_FILE
from skillhub.bases import find_base
from skillhub.checkpointfiles import WEIGHTS_FILE
from skillhub.checkpoints import Checkpoint, dtype_tag, open_checkpoint
from skillhub.compose.alterations import is_altered, take_marks
from skillhub.compose.graftstates import Grafts, grafts_of, set_state
from skillhub.compose.layouts import grafted_layout, plain_model
from skillhub.compose.merging import Contribution, changed_names, contributing, merge_tensor
from skillhub.compose.openings import open_grafts
from skillhub.compose.sidepaths import HiddenSlot, SideSlot
from skillhub.errors import UsageError, WrongBaseError
from skillhub.files import new_folder
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.layout import Layout
from skillhub.packer import pack
from skillhub.packs import Pack
from skillhub.progress import Progress
from skillhub.tensorfiles import write_tensors


def pack_grafted(
    model: nn.Module,
    out: str | Path,
    *,
    metadata: AuthorFile,
    base: str | Path | None = None,
    preset: str = "near",
    budget_bytes: int | None = None,
    progress: Progress | None = None,
) -> Pack:
    """Build a pack of all that a grafted model differs in from its base: of its packs, and of what was trained since.

    Deltas are taken in fp32: of packs as they decode, of factors that were trained (``trainable=True``) as they multiply; only
    weights that were trained in place count as they are. After that ``ungraft`` takes the packs out without ``force``. Beside ``out``
    a checkpoint of the model lies for a while, with four bytes for every weight that packs change.

    Args:
        model: a model with grafts; it is not changed.
        out: folder of the new pack; it must not exist yet, or be empty.
        metadata: name, version and what else the author says.
        base: the base model, a folder or ``repo[@revision]``; by default where transformers loaded the model from.
        preset: as for ``skillhub.pack``.
        budget_bytes: likewise.
        progress: called with (what, tensors done, tensors in all).

    Returns:
        The pack, opened.

    Raises:
        UsageError: no pack is grafted, the base is not known, or as ``skillhub.pack``.
        WrongBaseError: ``base`` is not the model's.
        SkillhubError: as ``skillhub.pack``.
    """
    if not isinstance(metadata, AuthorFile):
        raise UsageError(
            f"metadata says name and version of the new pack; {metadata!r} does not.",
            hint='Give skillhub.AuthorFile(name="math-pack", version="1.0.0").',
        )
    inner = plain_model(model)
    state, out = grafts_of(inner), new_folder(out)
    source = base or _source_of(inner)
    checkpoint = open_checkpoint(source)
    fingerprint = fingerprint_checkpoint(find_base(source).folder).fingerprint
    if state.fingerprint not in (None, fingerprint):
        raise WrongBaseError(
            f"{source} is not the base of the packs on this model.",
            hint="Give base=…, the model that they were grafted onto.",
        )
    layout = grafted_layout(inner)
    values = _Values(checkpoint, layout, state, open_grafts(inner, layout, state))
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{out.name}-", suffix=".part") as folder:
        _write(values, Path(folder))
        result = pack(
            folder, source, out, metadata=metadata, preset=preset, budget_bytes=budget_bytes, progress=progress
        )
    set_state(inner, replace(state, marks=take_marks(layout, state.originals)))
    return result


@dataclass(frozen=True)
class _Values:
    """The tensors of a grafted model, as precise as they are known."""

    checkpoint: Checkpoint
    layout: Layout
    state: Grafts
    contributions: list[Contribution]

    def find(self, name: str) -> tuple[torch.dtype, Callable[[], torch.Tensor]]:
        """Return the dtype of one tensor, and what computes it."""
        slot = self.layout.slots.get(name)
        if slot is None or isinstance(slot, HiddenSlot):
            tensor = self.checkpoint.tensor(name)
            return tensor.dtype, lambda: tensor
        if isinstance(slot, SideSlot):
            beside = slot
            return torch.float32, lambda: self.checkpoint.tensor(name).to(torch.float32) + beside.difference()
        source, changed = self.state.repeats.get(name, name), changed_names(self.contributions)
        is_known = source in changed and not is_altered(slot, self.state.marks)
        if is_known and not contributing(self.contributions, source)[0].delta.sets_values(source):
            base = self.state.originals[name]
            return torch.float32, lambda: merge_tensor(
                self.state.active, self.contributions, source, base, torch.float32
            )
        return slot.dtype, slot.read


def _write(values: _Values, folder: Path) -> None:
    """Write a checkpoint of the tensors that the base has."""
    found = {name: values.find(name) for name in values.checkpoint.tensors}
    specs = {
        values.checkpoint.tensors[name].name: (dtype_tag(dtype), list(values.checkpoint.tensors[name].shape))
        for name, (dtype, _) in found.items()
    }

    def data() -> Iterator[Any]:
        for _, compute in found.values():
            yield compute().detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()

    write_tensors(folder / WEIGHTS_FILE, specs, data(), {"format": "pt"})
    config = values.checkpoint.folder / CONFIG_FILE
    if config.is_file():
        shutil.copyfile(config, folder / CONFIG_FILE)


def _source_of(model: Any) -> str:
    """Return where transformers loaded a model from."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        raise UsageError("Where the model was loaded from is not known.", hint="Give base=…, its folder or repository.")
    commit = getattr(model.config, "_commit_hash", None)
    return f"{name}@{commit}" if commit and not Path(name).exists() else name
