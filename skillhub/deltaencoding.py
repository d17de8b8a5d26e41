"""Encoding the delta of a fine-tune, tensor by tensor: within a budget, or bit for bit.

Within a budget there are two passes: the first measures what every tensor's bits would buy, then one Lagrange multiplier is chosen for
the whole model, then the second pass encodes. So a byte goes where it removes most of the error, whichever tensor that is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from skillhub.calibration.moments import Calibration
from skillhub.codecs import EncodedTensor, content_digest, decode, exact, lowrank, restoration
from skillhub.codecs.allocation import (
    SMALL_TENSOR,
    Analysis,
    ErrorRecord,
    analyse,
    encode,
    measure_error,
)
from skillhub.codecs.candidates import Values
from skillhub.codecs.metrics import Metrics
from skillhub.deltafiles import DeltaWriter
from skillhub.deltas import Delta, difference
from skillhub.devices import available_bytes, device_with
from skillhub.manifest import TensorEntry
from skillhub.partials import Partial
from skillhub.progress import Notice, Progress, silence
from skillhub.ranks import Ranks
from skillhub.recipes import Recipe
from skillhub.recipes.encoding import keep_exactly

T = TypeVar("T")

Kept: TypeAlias = tuple[EncodedTensor | None, TensorEntry]
"""A tensor as it is stored (None where it is removed), and what the manifest says of it."""

NO_ERROR = ErrorRecord(0.0, 0.0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread while the block runs: with several, sums are taken in another order, and the bytes are others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Encoding:
    """A tensor as it is stored, and what it decodes to.

    Attributes:
        tensor: the encoded tensor.
        decoded: what it decodes to.
        error: how far that is from the true delta.
    """

    tensor: EncodedTensor
    decoded: torch.Tensor
    error: ErrorRecord = NO_ERROR

    def entry(self, change: str) -> TensorEntry:
        """Return what the manifest says of the tensor."""
        return TensorEntry(
            shape=list(self.tensor.shape),
            change=change,
            codecs=[part.codec for part in self.tensor.parts],
            bytes=self.tensor.nbytes,
            relative_error=self.error.relative_squared_error,
            max_error=self.error.max_absolute_error,
            digest=content_digest(self.tensor, self.decoded),
        )


@dataclass(frozen=True, eq=False)
class DeltaEncoder:
    """Encodes the changed tensors of a fine-tune: what it needs at any price.

    Attributes:
        delta: the fine-tune and its base.
        names: of the changed tensors.
        partial: where what was found out is kept, for whoever goes on with an interrupted run.
        calibration: what errors cost; None counts all alike.
        progress: called with (``Analysing`` or ``Encoding``, tensors of this process done, all of them).
        ranks: the processes that share the tensors; what they find out is the same for any number of them.
        notice: told what is left out for want of memory.
    """

    delta: Delta
    names: list[str]
    partial: Partial
    calibration: Calibration | None
    progress: Progress | None
    ranks: Ranks = field(default_factory=Ranks)
    notice: Notice = silence

    def analyse(self) -> tuple[dict[str, Analysis], int]:
        """Return what the bits of each difference would buy, and the bytes of the tensors that are stored as they are."""
        own = self._do_own("Analysing", self._analysed)
        found = {name: own[name] if name in own else self._analysed(name) for name in self.names}
        set_bytes = sum(one for one in found.values() if isinstance(one, int))
        self._tell_what_is_whole(found)
        return {name: one for name, one in found.items() if not isinstance(one, int)}, set_bytes

    def _tell_what_is_whole(self, found: Mapping[str, Analysis | int]) -> None:
        """Tell which matrices are stored bit for bit, and so take most of a pack."""
        sizes = {
            name: one if isinstance(one, int) else one.fixed_bytes
            for name, one in found.items()
            if (isinstance(one, int) or one.is_whole) and self._is_large_matrix(name)
        }
        largest = sorted(sizes, key=lambda name: -sizes[name])
        if largest and self.ranks.leads:
            more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
            self.notice(
                f"Stored as they are, in {sum(sizes.values()) / 1e6:.2f} MB: {', '.join(largest[:3])}{more}. They are added, of a dtype that has "
                "no differences, or hold values that are infinite, no numbers or out of all proportion."
            )

    def _is_large_matrix(self, name: str) -> bool:
        found = self.delta.tuned.tensors.get(name)  # what is removed is not there
        return found is not None and len(found.shape) > 1 and math.prod(found.shape) > SMALL_TENSOR

    def _analysed(self, name: str) -> Analysis | int:
        """Return what the bits of a difference would buy; of another change the bytes that it takes."""
        return self.partial.made("analysis", name, lambda: self._analyse_tensor(name))

    def _analyse_tensor(self, name: str) -> Analysis | int:
        if not self.delta.is_additive(name):
            return 0 if self.delta.change(name) == "removed" else _set_values(self.delta, name).nbytes
        true, added = self.delta.tensor(name), self.delta.added_rows(name)
        values = self._values(name)
        metrics, spool = self._metrics(name), self.partial.folder
        return analyse(name, true, added_rows=added, metrics=metrics, values=values, spool=spool)

    def _values(self, name: str) -> Values:
        return Values(self.delta.tuned.tensor(name), self.delta.base.tensor(name))

    def _metrics(self, name: str) -> Metrics | None:
        shape = self.delta.tuned.tensors[name].shape
        if self.calibration is None or len(shape) < 2 or self.delta.added_rows(name):
            return None
        return self.calibration.metrics(name, shape)

    def payload(self, analyses: dict[str, Analysis], price: float) -> int:
        """Return the bytes of all tensors at a price, before scales are fitted, which changes them by next to nothing."""
        encode_one = self._encoded_at(analyses, price)
        self._do_own("Encoding", lambda name: encode_one(name)[1])
        return sum(encode_one(name)[1].bytes for name in self.names)

    def encode(self, analyses: dict[str, Analysis], price: float, writer: DeltaWriter) -> dict[str, TensorEntry]:
        """Write all tensors at a price; return what the manifest says of each.

        Where the fine-tune was calibrated, the scales of components are fitted to its predictions.
        """
        encode_one, how = self._encoded_at(analyses, price), f"price {price!r}"
        if self.calibration is None:
            return self._write(writer, encode_one)
        self._do_own("Encoding", lambda name: encode_one(name)[1])
        gains = self._found_gains(f"gains, {how}", encode_one)

        def fit_one(name: str) -> Kept:
            if name not in gains:
                return encode_one(name)
            return self._kept(f"{how}, fitted", lambda _: self._rescale(name, encode_one(name), gains[name]), name)

        return self._write(writer, fit_one)

    def _encoded_at(self, analyses: dict[str, Analysis], price: float) -> Callable[[str], Kept]:
        """Return what encodes a tensor at a price, or takes it up where that was done before."""
        return partial(
            self._kept, f"price {price!r}", lambda name: self._encode_tensor(name, analyses.get(name), price)
        )

    def _found_gains(self, key: str, encoded: Callable[[str], Kept]) -> dict[str, Any]:
        """Return what the first process fits, to every process; nothing where its memory is too small, of which no record is kept."""

        def find() -> dict[str, Any]:
            return self.partial.made("finding", key, lambda: self._fit_scales(encoded))

        def are_found() -> bool:
            if self.partial.read("finding", key) is None and not self._can_fit():
                return False
            find()
            return True

        return find() if self.ranks.share(lambda: self.ranks.leads and are_found())[0] else {}

    def _can_fit(self) -> bool:
        """Say whether there is memory to fit scales, and tell where there is not."""
        from skillhub.calibration.distillation import fitting_bytes

        needed = fitting_bytes(self.delta.tuned.parameters)
        left = available_bytes(device_with(needed))
        if left is None or left >= needed:
            return True
        self.notice(
            f"The scales of components were not fitted to the fine-tune's predictions, which takes {needed / 1e9:.1f} GB of memory: "
            f"{left / 1e9:.1f} GB are left."
        )
        return False

    def _fit_scales(self, encoded: Callable[[str], Kept]) -> dict[str, Any]:
        """Return what the scales of each tensor's components are to be multiplied by."""
        from skillhub.calibration.distillation import fit_scales

        assert self.calibration is not None  # without rows there is nothing to fit to
        tensors = {name: tensor for name in self.names if (tensor := encoded(name)[0]) and tensor.operation == "add"}
        factors = {}
        for name, tensor in tensors.items():
            if tensor.parts[0].codec == lowrank.ID:
                components = lowrank.read_components(tensor.parts[0], *lowrank.matrix_shape(tensor.shape))
                factors[name] = lowrank.factors_of(components)
        weights = ((name, self._packed_values(name, tensor)) for name, tensor in tensors.items())
        folders = self.delta.tuned.folder, self.delta.base.folder
        return fit_scales(*folders, self.calibration.rows, weights, factors, self.partial.folder, self.progress)

    def _packed_values(self, name: str, tensor: EncodedTensor) -> torch.Tensor:
        """Return a tensor of the fine-tune as it is packed, fp32; what it has that the base has not is kept exactly."""
        values = self.delta.values(name).float()
        values -= self.delta.tensor(name)  # in place: of an embedding every copy counts
        values += decode(tensor)
        return values

    def _rescale(self, name: str, kept: Kept, gains: npt.NDArray[np.float64]) -> Encoding:
        tensor = kept[0]
        assert tensor is not None  # what has components is stored
        parts = (lowrank.rescale(tensor.parts[0], tensor.shape, gains), *tensor.parts[1:])
        found = EncodedTensor(tensor.shape, parts)
        decoded = decode(found)
        return Encoding(found, decoded, measure_error(self.delta.tensor(name), decoded))

    def encode_losslessly(self, writer: DeltaWriter) -> dict[str, TensorEntry]:
        """Write all tensors so that the fine-tune's are restored bit for bit; return what the manifest says of each."""
        return self._write(writer, partial(self._kept, "bits", self._encode_bits))

    def encode_by(self, recipe: Recipe, writer: DeltaWriter) -> dict[str, TensorEntry]:
        """Write all tensors as a published recipe compresses them; return what the manifest says of each.

        What no recipe speaks of is kept exactly: values that are set, and tensors with rows that the base does not have.
        """
        return self._write(writer, partial(self._kept, "recipe", lambda name: self._compress(recipe, name)))

    def _do_own(self, what: str, work: Callable[[str], T]) -> dict[str, T]:
        """Do something with each of this process's tensors, wait until all processes have, and return what came of its own."""
        sizes = {name: max(self._nbytes(name), 1) for name in self.names}
        own = self.ranks.own(sizes)

        def do_all() -> None:
            for number, name in enumerate(own):
                done[name] = work(name)
                if self.progress and self.ranks.leads:
                    self.progress(what, number + 1, len(own))

        done: dict[str, T] = {}
        with one_thread():
            self.ranks.share(do_all)
        return done

    def _nbytes(self, name: str) -> int:
        both = (checkpoint.tensors.get(name) for checkpoint in (self.delta.base, self.delta.tuned))
        return sum(info.nbytes for info in both if info)

    def _kept(self, how: str, encoded: Callable[[str], Encoding], name: str) -> Kept:
        """Return how a tensor is stored; ``how`` tells encodings of it apart."""
        return self.partial.made("encoding", f"{name}, {how}", lambda: self._with_entry(name, encoded))

    def _write(self, writer: DeltaWriter, encoded: Callable[[str], Kept]) -> dict[str, TensorEntry]:
        """Write all tensors, by the first process; return what the manifest says of each."""
        self._do_own("Encoding", lambda name: encoded(name)[1])
        entries = {}
        for name in self.names:
            tensor, entries[name] = encoded(name)
            if tensor is not None and self.ranks.leads:
                writer.add(name, tensor)
        if self.ranks.leads:
            writer.close()
        return entries

    def _with_entry(self, name: str, encoded: Callable[[str], Encoding]) -> Kept:
        if self.delta.change(name) == "removed":
            return None, _removed(self.delta, name)
        found = encoded(name)
        return found.tensor, found.entry(self.delta.change(name))

    def _encode_tensor(self, name: str, analysis: Analysis | None, price: float) -> Encoding:
        """Encode one tensor; its errors are those of the decoded bytes, not of the plan."""
        if analysis is None:
            return Encoding(found := _set_values(self.delta, name), decode(found))
        true = self.delta.tensor(name)
        values = self._values(name)
        found = encode(analysis, price, true, values)
        decoded = decode(found, values.base)
        error = decoded if found.operation == "add" else difference(decoded, values.base)
        return Encoding(found, decoded, measure_error(true, error))

    def _compress(self, recipe: Recipe, name: str) -> Encoding:
        if not self.delta.is_additive(name):
            return Encoding(found := _set_values(self.delta, name), decode(found))
        true = self.delta.tensor(name)
        if self.delta.added_rows(name):
            found = keep_exactly(true).encoded
        else:
            seen = self.calibration.second_moment(name, tuple(true.shape)) if self.calibration else None
            found = recipe(name, true, seen).encoded
        decoded = decode(found)
        return Encoding(found, decoded, measure_error(true, decoded))

    def _encode_bits(self, name: str) -> Encoding:
        if self.delta.change(name) == "added":
            return Encoding(found := _set_values(self.delta, name), decode(found))
        base = self.delta.base.tensor(name)
        found = restoration.encode(name, self.delta.values(name), base)
        return Encoding(found, decode(found, base))


def _set_values(delta: Delta, name: str) -> EncodedTensor:
    return exact.encode(delta.values(name), operation="set")


def _removed(delta: Delta, name: str) -> TensorEntry:
    shape = list(delta.base.tensors[name].shape)
    return TensorEntry(shape=shape, change="removed", codecs=[], bytes=0, relative_error=0.0, max_error=0.0)
