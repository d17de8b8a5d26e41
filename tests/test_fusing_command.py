"""What ``skillhub fuse`` is told in texts and files, and what its plan says of where the checkpoint is to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skillhub.cli.amounts import choose_amounts, read_amounts, read_options, read_size
from skillhub.compose.schedules import read_amount
from skillhub.errors import UnsafeContentError, UsageError
from tests.support.commands import Shell
from tests.support.tiny_models import save_model, tune


def test_options_are_numbers_or_switches() -> None:
    texts = ["lambda=0.5", "normalize=false", "rescale=TRUE", "r=1e-3"]
    assert read_options(texts) == {"lambda": 0.5, "normalize": 0.0, "rescale": 1.0, "r": 0.001}
    for wrong in ("lambda", "lambda=", "lambda=much", "=x"):
        with pytest.raises(UsageError, match="is not an option"):
            read_options([wrong])
    with pytest.raises(UsageError, match="'lambda' is there twice"):
        read_options(["lambda=1", "lambda=2"])


def test_sizes_are_bytes_with_or_without_a_unit() -> None:
    assert [read_size(text) for text in ("5GB", "500 mb", "1.5KB", "7")] == [5 * 10**9, 5 * 10**8, 1500, 7]
    for wrong in ("", "0", "-5GB", "nan", "inf", "1e400", "5GIB", "GB"):
        with pytest.raises(ValueError, match="is no"):
            read_size(wrong)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.toml", b'["./p\xe9"]\nweight = 1\n'),
        ("w.toml", '["./p"]\nweight = 1\n'.encode("utf-16")),
        ("w.toml", b"a = " + b"[" * 100_000),
        ("w.json", b"[" * 100_000),
        ("w.json", b'{"./p": {"weight": ' + b"9" * 5000 + b"}}"),
        ("w.json", b"{"),
        ("w.toml", b"a ="),
    ],
)
def test_a_file_of_weights_that_cannot_be_read_is_a_mistake(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=r"w\.(toml|json) is not valid"):
        read_amounts(tmp_path / name)


@pytest.mark.parametrize("text", ["[1]", '{"./p": 1}', '{"./p": {"wait": 1}}', "null"])
def test_a_file_that_says_something_else_is_a_mistake(text: str, tmp_path: Path) -> None:
    (tmp_path / "w.JSON").write_text(text)
    with pytest.raises(UsageError, match="does not say what each pack weighs"):
        read_amounts(tmp_path / "w.JSON")


def test_a_file_of_weights_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(UnsafeContentError):
        read_amounts(tmp_path / "w.toml")


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 5000 + ")" * 5000])
def test_a_pattern_that_is_none_is_a_mistake(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a pattern"):
        read_amount("weights", {pattern: 1})


def test_what_the_file_says_and_what_the_command_says_go_together(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_bytes(b'\xef\xbb\xbf["./a"]\nweight = 0.5\n["./b"]\ndensity = [0.1, 0.9]\n')

    def chosen(weights: list[float], densities: list[float]) -> dict[str, Any]:
        return choose_amounts(["./a", "./b"], weights, densities, path)

    assert chosen([1, 2], []) == {"weights": [0.5, 2], "densities": [1.0, [0.1, 0.9]]}
    with pytest.raises(UsageError, match=r"has a weight for \./a, and so has the command"):
        chosen([0.25, 1], [])
    with pytest.raises(UsageError, match=r"has a density for \./b, and so has the command"):
        chosen([1, 1], [0.5])


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in whose folder lie a base and a fine-tune."""
    shell = Shell(tmp_path_factory.mktemp("fuse"))
    base = save_model("llama", shell.home / "base")
    tune(base, shell.home / "tuned")
    return shell


SOURCES = ("fuse", "--base", "base", "--pack", "./tuned")


def test_the_plan_says_what_is_wrong_with_folder_device_and_tokenizer(shell: Shell) -> None:
    done = shell.run(*SOURCES, "--plan", "-o", "base", "--device", "meta", "--tokenizer", "./nowhere")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for message in ("base exists already", "There is no device 'meta'", "nowhere"):
        assert message in " ".join(done.stdout.split()), message
    assert "Leave one of them out" in shell.fail(2, *SOURCES, "--plan", "--interference", "x.png")
    assert "There is no device 'meta'" in shell.fail(2, *SOURCES, "--device", "meta", "-o", "out")
    assert not (shell.home / "out").exists()


def test_what_is_no_pack_no_base_and_no_merge_file_is_told(shell: Shell) -> None:
    assert "'' names no pack" in shell.fail(2, "fuse", "--base", "base", "--pack", "", "-o", "out")
    assert "'@0.5' names no pack" in shell.fail(2, "fuse", "--base", "base", "--pack", "@0.5", "-o", "out")
    assert "no base model in ''" in shell.fail(4, "fuse", "--base", "", "--pack", "./tuned", "-o", "out")
    assert "--pack tuned" in shell.fail(2, "fuse", "tuned", "--base", "base", "-o", "out")
    (shell.home / "m.yml").write_text("merge_method: linear\nmodels: [{model: ./tuned, parameters: {weight: 1}}]\n")
    assert "exists already" in shell.fail(2, "fuse", "m.yml", "--plan", "-o", "base")
