"""Merging whole models: every tensor of the result from tensors of several models, a chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from skillhub.bfloat16 import FLOATS
from skillhub.canonical import HEADS, is_vocabulary_tensor
from skillhub.checkpoints import DTYPES, dtype_tag
from skillhub.codecs.streams import Bytes, tensor_bytes
from skillhub.compose.blends import Blend, Told, blend
from skillhub.compose.layerplans import PlannedTensor, plan_layers
from skillhub.compose.merging import merge_rows
from skillhub.compose.methods import MergeInputs, find_method
from skillhub.compose.modelsources import ModelSource
from skillhub.compose.sharding import stored_pieces
from skillhub.compose.vocabularies import Vocabulary
from skillhub.errors import UsageError
from skillhub.fingerprint import same_content
from skillhub.interop.mergekit.configurations import Configuration
from skillhub.interop.mergekit.models import ModelName
from skillhub.rounding import rounding_key
from skillhub.tensorfiles import BITS, TensorInfo
from skillhub.tensorreaders import DifferenceReader, RememberingReader, Shape, TensorReader


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """A tensor of the result.

    Attributes:
        name: in the files.
        dtype: safetensors dtype tag.
        shape: its shape.
        planned: what it is made from.
        inputs: canonical name in each source.
        blend: how; None for a tensor of integers, which all sources have alike.
    """

    name: str
    dtype: str
    shape: Shape
    planned: PlannedTensor
    inputs: tuple[str, ...]
    blend: Blend | None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True, eq=False)
class ModelMerge:
    """A merge of models that is ready to be written.

    Attributes:
        configuration: what was asked for.
        sources: the models, the base first where one was named.
        vocabulary: of the result, where it is made anew.
        seed: of random masks.
        rounding: ``auto``, ``nearest`` or ``stochastic``.
        device: where chunks are merged; None for the CPU.
    """

    configuration: Configuration
    sources: Mapping[ModelName, ModelSource]
    vocabulary: Vocabulary | None = None
    seed: int = 0
    rounding: str = "auto"
    device: torch.device | None = None

    @property
    def donor(self) -> ModelSource:
        """The model that config, tokenizer and names in the files are from: the base, else the first."""
        return next(iter(self.sources.values()))

    def plan(self) -> list[MergedTensor]:
        """Return every tensor of the result, sorted by its name in the files, from headers alone.

        Raises:
            UsageError: a model lacks a tensor, shapes differ, or the file leaves a parameter open.
        """
        planned = plan_layers(self.configuration, {model: _planned_names(one) for model, one in self.sources.items()})
        return sorted(map(self._tensor, planned), key=lambda tensor: tensor.name)

    def _tensor(self, planned: PlannedTensor) -> MergedTensor:
        sources = [self.sources[source.model] for source in planned.part.sources]
        inputs = tuple(map(_present, sources, planned.inputs))
        shape = self._shape(planned, sources, inputs)
        dtypes = [source.dtype(name) for source, name in zip(sources, inputs, strict=True)]
        name = self._stored(planned.name)
        if not set(dtypes) <= FLOATS:
            _check_alike(name, sources, inputs)
            return MergedTensor(name, dtypes[0], shape, planned, inputs, None)
        told = Told(self.configuration, planned, name, [self._stored(one) for one in planned.inputs])
        dtype = self.configuration.out_dtype or self.configuration.dtype or _promoted(dtypes)
        return MergedTensor(name, dtype, shape, planned, inputs, blend(told))

    def _shape(self, planned: PlannedTensor, sources: Sequence[ModelSource], inputs: Sequence[str]) -> Shape:
        shapes = [source.shapes[name] for source, name in zip(sources, inputs, strict=True)]
        if self.vocabulary and is_vocabulary_tensor(planned.name):
            self.vocabulary.check_rules({one.model: shape[0] for one, shape in zip(sources, shapes, strict=True)})
            shapes = [(self.vocabulary.rows, *shape[1:]) for shape in shapes]
        for source, shape in zip(sources, shapes, strict=True):
            if shape != shapes[0]:
                rows = shape[1:] == shapes[0][1:] and is_vocabulary_tensor(planned.name)
                raise UsageError(
                    f"{planned.name} is {list(shapes[0])} in {sources[0].model} and {list(shape)} in {source.model}.",
                    hint="Their vocabularies differ: write 'tokenizer: {source: base}', or union."
                    if rows
                    else "Merge models of one architecture and size.",
                    tensor=planned.name,
                )
        return shapes[0]

    def _stored(self, name: str) -> str:
        """Return what a canonical name is called in the files: with the wrapper that the donor's have."""
        return self._wrappers.get(name.partition(".")[0], "") + name

    @cached_property
    def _wrappers(self) -> Mapping[str, str]:
        """First component of a canonical name → what the donor's files have before it."""
        canonical = self.donor.checkpoint.canonical
        return {bare.partition(".")[0]: stored.removesuffix(bare) for stored, bare in canonical.items()}

    def pieces(self, tensor: MergedTensor) -> Iterator[Bytes]:
        """Yield a tensor's bytes, some rows at a time.

        Raises:
            IntegrityError: a pack's bytes are damaged.
            UsageError: a sum of finite values is too large for the dtype.
        """
        sources = [self.sources[source.model] for source in tensor.planned.part.sources]
        stored = self._copied(tensor, sources)
        if stored is not None:
            yield from stored_pieces(stored)
            return
        assert tensor.blend is not None
        merged = merge_rows(
            find_method(tensor.blend.method),
            self._inputs(tensor, tensor.blend, sources),
            DTYPES[tensor.dtype],
            key=rounding_key([str(self.seed)], tensor.planned.name),
            mode=self._mode(tensor, sources),
            device=self.device,
        )
        for rows in merged:
            yield tensor_bytes(rows.contiguous())

    def _copied(self, tensor: MergedTensor, sources: Sequence[ModelSource]) -> TensorInfo | None:
        """Return the stored tensor that the result is, bit for bit; None where it is computed."""
        index = 0 if tensor.blend is None else tensor.blend.copies
        if index is None or (self.vocabulary and is_vocabulary_tensor(tensor.planned.name)):
            return None
        source, name = sources[index], tensor.inputs[index]
        info = source.checkpoint.tensors.get(name)
        changed = any(name in delta.tensors for delta in source.deltas)
        return None if info is None or changed or info.dtype != tensor.dtype else info

    def _inputs(self, tensor: MergedTensor, mix: Blend, sources: Sequence[ModelSource]) -> MergeInputs:
        base: TensorReader | None = None
        if self.vocabulary and is_vocabulary_tensor(tensor.planned.name):
            readers = self._aligned(tensor, sources)
            base = None if mix.base is None else RememberingReader(readers[mix.base])
            deltas = [readers[one] if base is None else DifferenceReader(readers[one], base) for one in mix.members]
        elif mix.base is None:
            deltas = [sources[one].reader(tensor.inputs[one]) for one in mix.members]
        else:
            origin, own = sources[mix.base], tensor.inputs[mix.base]
            base = RememberingReader(origin.reader(own))
            deltas = [sources[one].difference(tensor.inputs[one], origin, own, base) for one in mix.members]
        return MergeInputs(
            name=tensor.planned.name,
            base=base,
            deltas=deltas,
            weights=mix.weights or (1.0,) * len(mix.members),
            densities=mix.densities or (1.0,) * len(mix.members),
            options={**_defaults(mix.method), **mix.options},
            keys=[rounding_key([f"mask {self.seed}", str(one)], tensor.planned.name) for one in mix.members],
        )

    def _aligned(self, tensor: MergedTensor, sources: Sequence[ModelSource]) -> list[TensorReader]:
        assert self.vocabulary is not None
        readers = [source.reader(name) for source, name in zip(sources, tensor.inputs, strict=True)]
        models = [source.model for source in tensor.planned.part.sources]
        return self.vocabulary.aligned(models, readers, tensor.planned.part.base)

    def _mode(self, tensor: MergedTensor, sources: Sequence[ModelSource]) -> str:
        if self.rounding != "auto":
            return self.rounding
        exact = all(source.is_exact(name) for source, name in zip(sources, tensor.inputs, strict=True))
        return "nearest" if exact else "stochastic"


def _planned_names(source: ModelSource) -> list[str]:
    """Return the tensors that a model has, with a head that its files repeat where its config says that they are apart."""
    apart = source.checkpoint.config.get("tie_word_embeddings") is False
    repeated = [name for name in source.repeated if apart and name.endswith(HEADS)]
    return [*source.shapes, *repeated]


def _present(source: ModelSource, name: str) -> str:
    found = source.find(name)
    if found is None:
        raise UsageError(
            f"{source.model} has no tensor {name}, which another of the models has.",
            hint="Merge models of one architecture, saved by the same class.",
            tensor=name,
        )
    return found


def _promoted(dtypes: Sequence[str]) -> str:
    """Return the tag of the dtype that holds the values of all of some."""
    dtype = DTYPES[dtypes[0]]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, DTYPES[other])
    return dtype_tag(dtype)


def _check_alike(name: str, sources: Sequence[ModelSource], inputs: Sequence[str]) -> None:
    """Refuse tensors of integers that differ: there is nothing between them."""
    infos = [source.checkpoint.tensors.get(one) for source, one in zip(sources, inputs, strict=True)]
    first = infos[0]
    for info in infos:
        if info is None or first is None or (info is not first and not same_content(first, info)):
            raise UsageError(
                f"{name} does not hold weights that can be merged, and differs between the models.",
                hint="Merge models that agree in it.",
                tensor=name,
            )


def _defaults(method: str) -> dict[str, float]:
    return {name: option.default for name, option in find_method(method).options.items()}
