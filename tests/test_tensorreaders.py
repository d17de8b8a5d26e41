from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from skillhub.errors import IntegrityError, UsageError
from skillhub.tensorfiles import read_header, write_tensors
from skillhub.tensorreaders import (
    DifferenceReader,
    FactorReader,
    FileReader,
    MemoryReader,
    RememberingReader,
    SumReader,
    TensorReader,
    ZeroReader,
    moved,
    resized,
)

BASE = torch.tensor([[1.0, 2.0], [3.0, math.inf], [math.nan, -0.0]])
TUNED = torch.tensor([[1.5, 2.0], [3.0, math.inf], [math.nan, 1.0], [7.0, 8.0], [9.0, 10.0]])


def file_reader(path: Path, tensor: torch.Tensor) -> FileReader:
    write_tensors(path, {"t": ("F32", tuple(tensor.shape))}, [tensor.numpy()])
    return FileReader(read_header(path).tensors["t"])


def rows(reader: TensorReader, step: int) -> torch.Tensor:
    return torch.cat([reader.read(begin, begin + step) for begin in range(0, reader.shape[0], step)])


@pytest.mark.parametrize("step", [1, 2, 3, 9])
def test_differences_are_the_same_of_files_and_of_tensors_in_memory(tmp_path: Path, step: int):
    readers = (
        DifferenceReader(file_reader(tmp_path / "tuned", TUNED), file_reader(tmp_path / "base", BASE)),
        DifferenceReader(MemoryReader(TUNED), MemoryReader(BASE)),
    )
    kept = TUNED.clone()
    for reader in readers:
        expected = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0], [7.0, 8.0], [9.0, 10.0]])
        assert torch.equal(rows(reader, step), expected)
    assert torch.equal(TUNED.nan_to_num(), kept.nan_to_num())


def test_values_that_only_one_has_infinite_have_no_difference(tmp_path: Path):
    odd = TUNED.clone()
    odd[0, 0] = math.inf
    for tuned in (file_reader(tmp_path / "tuned", odd), MemoryReader(odd)):
        with pytest.raises(UsageError, match="infinite or no number"):
            DifferenceReader(tuned, MemoryReader(BASE)).read(0, 5)


def test_rows_beyond_a_tensor_are_none_and_those_that_a_file_lacks_are_an_error(tmp_path: Path):
    reader = file_reader(tmp_path / "base", BASE)
    assert reader.read(3, 3).shape == reader.read(5, 9).shape == (0, 2)
    assert torch.equal(rows(resized(reader, 7), 2)[3:], torch.zeros(4, 2))
    data = (tmp_path / "base").read_bytes()
    (tmp_path / "base").write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match="ends inside t"):
        reader.read(0, 3)


@pytest.mark.parametrize("step", [1, 2, 9])
def test_moved_readers_read_what_the_others_do(tmp_path: Path, step: int):
    base = RememberingReader(file_reader(tmp_path / "base", BASE[:2, :1]))
    tuned = file_reader(tmp_path / "tuned", TUNED[:, :1])
    readers: list[TensorReader] = [
        tuned,
        resized(base, 5),
        DifferenceReader(tuned, base),
        DifferenceReader(SumReader(base, tuned), base),
        SumReader(base, tuned),
        MemoryReader(TUNED[:, 1:]),
        FactorReader(torch.ones(2, 5), torch.ones(2, 1)),
        ZeroReader((5, 1)),
    ]
    for reader, other in zip(readers, moved(readers, torch.device("cpu"), 2), strict=True):
        assert reader.shape == other.shape == (5, 1)
        assert torch.equal(rows(reader, step).nan_to_num(), rows(other, step).nan_to_num())
