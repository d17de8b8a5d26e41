"""Models that are merged as wholes: checkpoints, also with packs or adapters on top of them, which stand for base + delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from skillhub.adapters import Adapter, is_adapter
from skillhub.bases import LocatedBase, find_base
from skillhub.canonical import alias_candidates
from skillhub.checkpoints import DTYPES, Checkpoint, dtype_tag, open_checkpoint
from skillhub.compose.merging import AnyDelta
from skillhub.compose.packsources import EnvironmentSource, find_pack
from skillhub.errors import NetworkError, NotFoundError, UsageError, WrongBaseError, located
from skillhub.files import expanded
from skillhub.fingerprint import fingerprint_checkpoint
from skillhub.interop.adapterdeltas import open_adapter_delta, target_of
from skillhub.interop.mergekit.models import ModelName
from skillhub.manifest import MANIFEST_FILE
from skillhub.packdeltas import PackDelta, open_delta
from skillhub.packs import Pack, describe_base
from skillhub.tensorreaders import (
    DifferenceReader,
    FileReader,
    MemoryReader,
    Shape,
    SumReader,
    TensorReader,
    ZeroReader,
)


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A model of a merge, opened; its weights are read when they are asked for.

    Attributes:
        model: as it was named.
        base: where its checkpoint was found.
        checkpoint: that checkpoint.
        deltas: what is added to it: a pack's delta, an adapter's.
    """

    model: ModelName
    base: LocatedBase
    checkpoint: Checkpoint
    deltas: tuple[AnyDelta, ...] = ()

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Canonical name → shape, of its tensors."""
        shapes: dict[str, Shape] = {name: info.shape for name, info in self.checkpoint.tensors.items()}
        for delta in self.deltas:
            for name in delta.names:
                entry = delta.entry(name)
                if entry.change == "removed":
                    shapes.pop(name, None)
                else:
                    shapes[name] = tuple(entry.shape)
        return shapes

    @property
    def repeated(self) -> frozenset[str]:
        """Canonical names of the tensors that its files repeat, such as a tied head that was saved."""
        return frozenset(self.checkpoint.aliases)

    def find(self, name: str) -> str | None:
        """Return which of its tensors a canonical name means: its own, or the embedding for a head that is tied to it."""
        if name in self.shapes:
            return name
        if name in self.checkpoint.aliases:
            return self.checkpoint.aliases[name]
        originals = (original for alias, original in alias_candidates([*self.shapes, name]) if alias == name)
        return next((original for original in originals if original in self.shapes), None)

    def dtype(self, name: str) -> str:
        """Return the safetensors dtype tag of one of its tensors."""
        for delta in self.deltas:
            if name in delta.tensors and delta.sets_values(name):
                return dtype_tag(delta.decode(name).dtype)
        return self.checkpoint.tensors[name].dtype

    def is_exact(self, name: str) -> bool:
        """Say whether what it holds of a tensor is what was trained, and no approximation of it."""
        return all(delta.entry(name).max_error == 0 for delta in self.deltas if name in delta.tensors)

    def reader(self, name: str) -> TensorReader:
        """Return a reader of one of its tensors.

        Raises:
            IntegrityError: a pack's bytes are damaged.
            UsageError: the tensor is of a dtype that torch has no elements for.
        """
        info = self.checkpoint.tensors.get(name)
        if info is not None and info.dtype not in DTYPES:
            raise UsageError(
                f"{name} is stored as {info.dtype} in {self.model}, which cannot be merged.",
                hint="Give the model as it was before it was quantized.",
            )
        reader: TensorReader | None = None if info is None else FileReader(info)
        for delta in self.deltas:
            if name not in delta.tensors:
                continue
            if reader is None or delta.sets_values(name):
                reader = MemoryReader(delta.decode(name))
            elif isinstance(delta, PackDelta) and delta.restores(name) and delta is self.deltas[0]:
                reader = MemoryReader(delta.restored(name))
            else:
                reader = SumReader(reader, delta.reader(name))
        assert reader is not None
        return reader

    def difference(self, name: str, base: ModelSource, base_name: str, reader: TensorReader) -> TensorReader:
        """Return a reader of what one of its tensors differs by from a tensor of a base model.

        A pack for just that base is asked for its delta, which is not added up and subtracted again.

        Args:
            name: its tensor.
            base: the base model.
            base_name: the base's tensor.
            reader: of that.
        """
        same = base.checkpoint.folder == self.checkpoint.folder and not base.deltas and name == base_name
        changing = [delta for delta in self.deltas if name in delta.tensors]
        if same and not changing:
            return ZeroReader(reader.shape)
        if same and len(changing) == 1 and not changing[0].sets_values(name):
            return changing[0].reader(name)
        return DifferenceReader(self.reader(name), reader)


def open_sources(
    models: Sequence[ModelName],
    *,
    environment: EnvironmentSource | None = None,
    results: Mapping[str, Path] | None = None,
) -> dict[ModelName, ModelSource]:
    """Open the models that a merge names.

    A name is that of an earlier result, a folder that exists, an installed pack, or a repository, in this order. A pack is added to
    the first of the other models that is its base, else to the base that it names itself.

    Args:
        models: their names.
        environment: where installed packs are looked up.
        results: name of an earlier document → folder of its result.

    Returns:
        The models, in the order of their names.

    Raises:
        NotFoundError: there is no such model, pack or adapter.
        WrongBaseError: a pack is not for the base.
        SkillhubError: as :func:`skillhub.checkpoints.open_checkpoint` and :func:`skillhub.compose.packsources.find_pack`.
    """
    opened: dict[ModelName, ModelSource] = {}
    packs: dict[ModelName, Pack | Adapter] = {}
    for model in models:
        result = (results or {}).get(model.path)
        with located(f"{model.place}"):
            found = LocatedBase(result) if result else _find(model, environment)
            if isinstance(found, LocatedBase):
                opened[model] = _opened(model, found, [], environment)
            else:
                packs[model] = found
    bases = [source.base for source in opened.values()]
    for model, pack in packs.items():
        with located(f"{model.place}"):
            fitting = (base for base in bases if _fits(pack, base))
            opened[model] = _opened(model, next(fitting, None) or _own_base(pack), [pack], environment)
    return {model: opened[model] for model in models}


def _opened(
    model: ModelName, base: LocatedBase, packs: list[Pack | Adapter], environment: EnvironmentSource | None
) -> ModelSource:
    checkpoint = open_checkpoint(base.folder)
    if model.adapter:
        packs = [*packs, _pack(model.adapter, environment)]
    return ModelSource(model, base, checkpoint, tuple(_open_delta(one, checkpoint) for one in packs))


def _find(model: ModelName, environment: EnvironmentSource | None) -> LocatedBase | Pack | Adapter:
    path = expanded(model.path)
    if path.exists():
        if model.revision:
            raise UsageError(f"{model.path} is a folder here, which has no revisions.", hint="Leave @… out.")
        is_pack = (path / MANIFEST_FILE).is_file() or is_adapter(path)
        return _pack(path, environment) if is_pack else find_base(path)
    if model.revision:
        return find_base(f"{model.path}@{model.revision}")
    try:
        return _pack(model.path, environment)
    except (NotFoundError, UsageError) as error:
        not_a_pack = error
    try:
        return find_base(model.path)
    except (NotFoundError, NetworkError) as error:
        error.message += f" As a pack: {not_a_pack.message}"
        raise


def _pack(source: str | Path, environment: EnvironmentSource | None) -> Pack | Adapter:
    folder = expanded(source)
    found = find_pack(folder if folder.is_dir() else source, environment=environment)
    if isinstance(found, (Pack, Adapter)):
        return found
    raise UsageError(f"{source} is a whole checkpoint, not an adapter.", hint="Name it as a model of its own.")


def _fits(pack: Pack | Adapter, base: LocatedBase) -> bool:
    """Say whether a base is one that a pack is for; adapters only declare theirs."""
    if isinstance(pack, Adapter):
        return base.repo is None or base.repo.lower() == (pack.config.base or "").lower()
    files = open_checkpoint(base.folder).files
    return pack.manifest.variant_for(fingerprint_checkpoint(files).fingerprint) is not None


def _own_base(pack: Pack | Adapter) -> LocatedBase:
    """Find the base model that a pack or an adapter says it is for."""
    if isinstance(pack, Adapter):
        repositories = [pack.config.base] if pack.config.base else []
    else:
        repositories = [
            f"{one.base.repo}@{one.base.revision}" if one.base.revision else one.base.repo
            for one in pack.manifest.variants
            if one.base.repo
        ]
    if len(repositories) == 1:
        return find_base(repositories[0])
    bases = "" if isinstance(pack, Adapter) else f" (it is for {', '.join(map(describe_base, pack.manifest.variants))})"
    raise WrongBaseError(
        f"{pack} needs its base model, which none of the other models is{bases}.",
        hint="Write the base before it, with a plus sign: base+pack.",
    )


def _open_delta(pack: Pack | Adapter, checkpoint: Checkpoint) -> AnyDelta:
    if isinstance(pack, Pack):
        fingerprint = fingerprint_checkpoint(checkpoint.files).fingerprint
        return open_delta(pack, fingerprint, checkpoint).with_checked_files()
    return open_adapter_delta(pack, target_of(checkpoint))
