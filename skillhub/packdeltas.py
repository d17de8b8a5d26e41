"""What a fine-tune changed, as a pack stores it; decoded tensor by tensor and on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from skillhub.codecs import EncodedTensor, content_digest, decode, decoded_digest, factors, lossless
from skillhub.codecs.decoding import factors_digest
from skillhub.deltafiles import DAMAGED, DeltaFiles, open_delta_files
from skillhub.deltareaders import reader_of
from skillhub.errors import IntegrityError, UsageError, WrongBaseError
from skillhub.fingerprint import BaseRecord
from skillhub.manifest import BASE_RECORD_FILE, FileEntry, TensorEntry, Variant
from skillhub.packs import Pack, check_file, describe_base
from skillhub.tensorreaders import DifferenceReader, MemoryReader, TensorReader

T = TypeVar("T")

_checked: set[tuple[Any, ...]] = set()
"""Path, size, modification time, inode and digest of the files that this process has found to be whole."""


class BaseValues(Protocol):
    """The base's tensors, such as a checkpoint has them."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor with the canonical name ``name``, on the CPU; it is not changed."""


@dataclass(frozen=True)
class PackDelta:
    """The delta of one variant of a pack, decoded tensor by tensor on demand.

    Attributes:
        pack: the pack.
        variant: the variant that was opened.
        files_checked: whether its files are known to be those of the manifest; decoding them then gives what that promises.
        base: the base's tensors, which decoding those takes that the pack restores bit for bit; None where they are not at hand.
    """

    pack: Pack
    variant: Variant
    _files: DeltaFiles
    files_checked: bool = False
    base: BaseValues | None = None
    _operations: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Canonical names of the tensors that the pack changes, sorted."""
        return sorted(self.tensors)

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Canonical name → what the manifest says of that tensor."""
        return self.variant.codec.tensors

    def entry(self, name: str) -> TensorEntry:
        """Return what the manifest says of a tensor."""
        return self.tensors[name]

    def encoded(self, name: str) -> EncodedTensor:
        """Return a tensor as it is stored; its arrays stay memory-mapped.

        Raises:
            IntegrityError: its description or an array is missing or not valid.
        """
        try:
            return self._files.encoded(name)
        except IntegrityError as error:
            raise IntegrityError(f"{self.pack}: {error.message}", hint=DAMAGED, tensor=name) from error

    def decode(self, name: str) -> torch.Tensor:
        """Decode a tensor: the fp32 delta, or where values are *set* the tuned tensor in its own dtype.

        Raises:
            IntegrityError: the stored bytes are damaged, or decode to something else than the manifest says.
            UsageError, WrongBaseError: as :meth:`restored`, of a tensor that is restored.
        """
        if self.restores(name):
            reader = self.reader(name)
            return reader.read(0, reader.shape[0]).reshape(self.entry(name).shape)
        tensor = self._read(name, decode)
        if self._read(name, lambda encoded: content_digest(encoded, tensor)) != self.entry(name).digest:
            raise self._broken_promise(name)
        return tensor

    def restored(self, name: str) -> torch.Tensor:
        """Return the tuned tensor itself, in its own dtype, where a pack restores it.

        Raises:
            IntegrityError: the stored bytes are damaged, or decode to something else than the manifest says.
            UsageError: the base is not at hand.
            WrongBaseError: its tensor is not bit for bit the one that the pack was made with.
        """
        base = self._exact_base(name)
        tensor = self._read(name, lambda encoded: decode(encoded, base))
        if decoded_digest(tensor) != self.entry(name).digest:
            raise self._broken_promise(name)
        return tensor

    def _exact_base(self, name: str) -> torch.Tensor:
        """Return the base's tensor as the pack was made with it. A fingerprint does not see less than a step of bfloat16."""
        if self.base is None:
            raise UsageError(
                f"{self.pack} stores {name} bit for bit, as a difference that takes the base to be decoded.",
                hint="Give the base model that the pack was made for.",
                tensor=name,
            )
        wanted = self._read(name, lambda encoded: lossless.base_dtype(encoded.parts[-1]))
        tensor = self.base.tensor(name).detach().cpu().to(wanted)
        if decoded_digest(tensor) != self._exact_digests.get(name):
            raise WrongBaseError(
                f"{self.pack} stores {name} bit for bit, and that of this base differs from the one that it was made for by less than "
                "a fingerprint sees, or is held in another dtype.",
                hint="Use the base's original files, loaded in their own dtype; or a pack that stores no tensor bit for bit.",
                tensor=name,
            )
        return tensor

    @cached_property
    def _exact_digests(self) -> Mapping[str, str]:
        """Canonical name of each of the base's tensors → digest of its very bytes."""
        path = f"{self.variant.folder}/{BASE_RECORD_FILE}"
        for entry in self.variant.files:
            if entry.path == path:
                _check_once(self.pack.path_of(entry), entry)
        if not (self.pack.folder / path).is_file():
            raise IntegrityError(f"{self.pack} lacks {path}.", hint=DAMAGED)
        record = BaseRecord.from_bytes((self.pack.folder / path).read_bytes())
        return {one.name: one.exact_digest for one in record.tensors}

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return factors whose product ``leftᵀ @ right`` is the delta of a matrix, where an adapter's are all that is stored; else None.

        Returns:
            (rank, rows) and (rank, columns) fp32, scaled.

        Raises:
            IntegrityError: as :meth:`decode`.
        """
        parts = self.encoded(name).parts
        if len(self.entry(name).shape) != 2 or {part.codec for part in parts} != {factors.ID}:
            return None
        if not self.files_checked and self._read(name, factors_digest) != self.entry(name).digest:
            raise self._broken_promise(name)
        pairs = self._read(name, lambda encoded: [factors.read_factors(one, encoded.shape).widened() for one in parts])
        return torch.cat([left for left, _ in pairs]), torch.cat([right for _, right in pairs])

    def _broken_promise(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self.pack}: {name} does not decode to what the manifest promises.", hint=DAMAGED, tensor=name
        )

    def reader(self, name: str) -> TensorReader:
        """Return a reader of a tensor's delta; not for tensors whose values are set.

        Where the files were checked it decodes the rows that are asked for, the bits of :meth:`decode`; otherwise all of them at once,
        since a digest is of the whole tensor.

        Raises:
            IntegrityError: as :meth:`decode`.
            UsageError, WrongBaseError: as :meth:`restored`, of a tensor that is restored.
        """
        if self.restores(name):
            tuned = MemoryReader(self.restored(name))
            assert self.base is not None
            return DifferenceReader(tuned, MemoryReader(self.base.tensor(name).detach().cpu()))
        return self._read(name, reader_of) if self.files_checked else MemoryReader(self.decode(name))

    def _read(self, name: str, read: Callable[[EncodedTensor], T]) -> T:
        """Read a tensor as it is stored, and say in errors which it is."""
        entry, encoded = self.entry(name), self.encoded(name)
        if list(encoded.shape) != entry.shape:
            raise IntegrityError(
                f"{self.pack}: {name} is stored as {list(encoded.shape)}, the manifest says {entry.shape}.",
                hint=DAMAGED,
                tensor=name,
            )
        try:
            return read(encoded)
        except IntegrityError as error:
            raise IntegrityError(f"{self.pack}, {name}: {error.message}", hint=DAMAGED, tensor=name) from error

    def with_checked_files(self) -> PackDelta:
        """Return this delta after its files were compared with the manifest's digests; of unchanged files only once a process.

        Raises:
            IntegrityError: one is missing or was altered.
            DiskError: one may not be read.
        """
        for entry in _delta_entries(self.variant):
            _check_once(self.pack.path_of(entry), entry)
        return replace(self, files_checked=True)

    def sets_values(self, name: str) -> bool:
        """Say whether :meth:`decode` gives the tuned tensor itself instead of a difference."""
        return self._operation(name) == "set"

    def restores(self, name: str) -> bool:
        """Say whether :meth:`restored` gives the tuned tensor, bit for bit, for the price of having the base's."""
        return self._operation(name) == "restore"

    def _operation(self, name: str) -> str:
        """Return what decoding a tensor gives; it is asked for many times, and each look at a tensor maps its arrays."""
        if name not in self._operations:
            removed = self.entry(name).change == "removed"
            self._operations[name] = "remove" if removed else self.encoded(name).operation
        return self._operations[name]


def open_delta(pack: Pack, fingerprint: str | None = None, base: BaseValues | None = None) -> PackDelta:
    """Open the delta of a pack for a base; headers are read and checked, payloads are not.

    Args:
        pack: the pack.
        fingerprint: of the base; None takes the pack's only variant.
        base: the base's tensors, for tensors that the pack restores bit for bit: a checkpoint, for instance.

    Raises:
        WrongBaseError: there is no variant for that base, or the pack is installed for another one.
        IntegrityError: a file is missing, truncated or not valid.
        NewerSchemaError: the files are of a schema that this version does not read.
    """
    variant = pack.only_variant() if fingerprint is None else pack.variant_for(fingerprint)
    _check_installed(pack, variant)
    files = open_delta_files(map(pack.path_of, _delta_entries(variant)))
    missing = {name for name, entry in variant.codec.tensors.items() if entry.change != "removed"} - set(files.parts)
    if missing:
        raise IntegrityError(f"{pack} lacks {min(missing)} and {len(missing) - 1} more tensors.", hint=DAMAGED)
    return PackDelta(pack, variant, files, base=base)


def _check_installed(pack: Pack, variant: Variant) -> None:
    """Refuse an installed pack whose files are those of another variant, as one environment needs one base's only."""

    def is_there(one: Variant) -> bool:
        return any(pack.path_of(entry).is_file() for entry in one.files)

    others = [describe_base(one) for one in pack.manifest.variants if one != variant and is_there(one)]
    if others and variant.files and not is_there(variant):
        raise WrongBaseError(
            f"{pack} is installed for {', '.join(others)}, not for {describe_base(variant)}.",
            hint=f"Install it for that base: skillhub install {pack.name} --base {variant.base.fingerprint}.",
            fingerprint=variant.base.fingerprint,
        )


def _delta_entries(variant: Variant) -> Iterator[FileEntry]:
    return (entry for entry in variant.files if entry.path.startswith(f"{variant.folder}/delta-"))


def _check_once(path: Path, entry: FileEntry) -> None:
    """Check a file, unless this process has done so and it has not changed since."""
    if path.is_file():
        status = path.stat()
        state = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino, entry.sha256)
        if state in _checked:
            return
        check_file(path, entry)
        _checked.add(state)
    else:
        check_file(path, entry)
