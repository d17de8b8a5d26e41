"""Every mistake a user can make ends in its exit code, a cause and a remedy, with nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.commands import Shell
from tests.support.tiny_models import save_model, tune


def build(shell: Shell, models: tuple[Path, Path], name: str = "bad-input") -> Path:
    base, tuned = models
    shell.succeed("pack", tuned, "--base", base, "-o", name, "--name", name, "--version", "1.0.0")
    return shell.home / name


def delta_file(pack: Path) -> Path:
    return next(pack.rglob("delta-00001.safetensors"))


def edit_manifest(pack: Path, **changes: Any) -> None:
    path = pack / "skillpack.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")) + "\n", encoding="utf-8")


def test_wrong_base_at_fuse_says_how_the_bases_differ(shell: Shell, models: tuple[Path, Path], tmp_path: Path) -> None:
    pack = build(shell, models)
    other = tune(models[0], tmp_path / "other", seed=7, only="layers.1")
    said = shell.fail(5, "fuse", "--base", other, "--pack", pack, "-o", "out")
    assert "differ" in said
    assert not (shell.home / "out").exists()


def test_wrong_base_at_install_names_the_base_that_fits(
    shell: Shell, models: tuple[Path, Path], tmp_path: Path, registry: Any
) -> None:
    pack = build(shell, models, "other-base")
    shell.succeed("publish", pack, f"{registry.user}/other-base")
    other = save_model("gpt2", tmp_path / "gpt2")
    said = shell.fail(5, "install", f"{registry.user}/other-base", "--base", other)
    assert "skb1:" in said


def test_a_base_without_some_tensors_is_another_base(shell: Shell, models: tuple[Path, Path], tmp_path: Path) -> None:
    pack = build(shell, models)
    tensors = load_file(models[0] / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    short = tmp_path / "short"
    short.mkdir()
    save_file(tensors, short / "model.safetensors")
    assert "up_proj" in shell.fail(5, "fuse", "--base", short, "--pack", pack, "-o", "out")


def test_a_pack_of_a_newer_schema(shell: Shell, models: tuple[Path, Path]) -> None:
    pack = build(shell, models)
    edit_manifest(pack, schema=9)
    assert "Upgrade" in shell.fail(15, "show", pack)
    shell.fail(15, "publish", pack, "someone/else")


def test_a_truncated_file(shell: Shell, models: tuple[Path, Path]) -> None:
    pack = build(shell, models)
    path = delta_file(pack)
    path.write_bytes(path.read_bytes()[:-7])
    shell.fail(6, "fuse", "--base", models[0], "--pack", pack, "-o", "out")
    shell.fail(6, "publish", pack, "someone/bad-input")
    assert not (shell.home / "out").exists()


def test_an_altered_installed_file(shell: Shell, models: tuple[Path, Path]) -> None:
    pack = build(shell, models)
    shell.succeed("install", pack, "--base", models[0])
    installed = Path(shell.json("list")["packs"][0]["folder"])
    path = delta_file(installed)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    done = shell.run("verify")
    assert done.returncode == 1
    assert "was altered" in done.stdout
    shell.fail(6, "run", "--base", models[0], "--pack", "bad-input", "hello")


def test_an_empty_prompt_and_a_named_folder_that_is_no_environment(shell: Shell, models: tuple[Path, Path]) -> None:
    shell.fail(2, "run", "--base", models[0], "")
    (shell.home / "typo").mkdir()
    for command in ("list", "verify"):
        shell.fail(4, command, "--environment", "typo")
    shell.fail(4, "uninstall", "math-pack", "--environment", "typo")
    assert list((shell.home / "typo").iterdir()) == []


def test_an_unknown_pack(shell: Shell, models: tuple[Path, Path], registry: Any) -> None:
    shell.fail(4, "install", f"{registry.user}/nothing-of-that-name", "--base", models[0])
    shell.fail(4, "uninstall", "nothing-of-that-name")
    shell.fail(4, "show", "./nowhere")


def test_no_version_satisfies(shell: Shell, models: tuple[Path, Path], registry: Any) -> None:
    shell.succeed("publish", build(shell, models, "one-version"), f"{registry.user}/one-version")
    assert "1.0.0" in shell.fail(3, "install", f"{registry.user}/one-version>=2", "--base", models[0])


def test_no_network(shell: Shell, models: tuple[Path, Path]) -> None:
    away = replace(shell, endpoint="http://127.0.0.1:9")
    away.fail(8, "install", "acme/math-pack", "--base", models[0])
    shell.fail(8, "install", "acme/math-pack", "--offline", "--base", models[0])


def test_no_token(shell: Shell, models: tuple[Path, Path]) -> None:
    pack = build(shell, models)
    anonymous = replace(shell, token=None)
    assert "HF_TOKEN" in anonymous.fail(9, "publish", pack, "someone/bad-input")


def test_names_that_leave_their_folder(shell: Shell, models: tuple[Path, Path]) -> None:
    shell.fail(2, "install", "acme/../../etc", "--base", models[0])
    shell.fail(2, "publish", build(shell, models), "../escape")
    shell.fail(2, "pack", models[1], "--base", models[0], "-o", "out", "--name", "../escape", "--version", "1.0")
    assert not (shell.home / "out").exists()


def test_a_manifest_whose_path_leaves_its_folder(shell: Shell, models: tuple[Path, Path]) -> None:
    pack = build(shell, models)
    manifest = json.loads((pack / "skillpack.json").read_text(encoding="utf-8"))
    manifest["variants"][0]["files"][0]["path"] = "../../outside"
    edit_manifest(pack, variants=manifest["variants"])
    assert "$.variants[0].files[0]" in shell.fail(12, "show", pack)


def test_a_missing_extra(
    shell: Shell, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "torch").mkdir(parents=True)
    blocker = 'raise ModuleNotFoundError("No module named \'torch\'", name="torch")\n'
    (hidden / "torch" / "__init__.py").write_text(blocker, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    said = shell.fail(2, "pack", models[1], "--base", models[0], "-o", "out", "--name", "x", "--version", "1.0")
    assert "pip install 'skillhub-packs[models]'" in said


def test_pickled_weights(shell: Shell, models: tuple[Path, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    said = shell.fail(12, "pack", pickled, "--base", models[0], "-o", "out", "--name", "x", "--version", "1.0")
    assert "save_pretrained" in said


def test_packing_what_did_not_change(shell: Shell, models: tuple[Path, Path]) -> None:
    base = models[0]
    shell.fail(2, "pack", base, "--base", base, "-o", "out", "--name", "x", "--version", "1.0")
    assert not (shell.home / "out").exists()


def test_packing_over_something(shell: Shell, models: tuple[Path, Path]) -> None:
    build(shell, models)
    base, tuned = models
    said = shell.fail(2, "pack", tuned, "--base", base, "-o", "bad-input", "--name", "x", "--version", "1.0")
    assert "exists already" in said


def test_versions_that_are_none(shell: Shell, models: tuple[Path, Path]) -> None:
    base, tuned = models
    for version in ("latest", "1.0+local", "v1.0"):
        shell.fail(2, "pack", tuned, "--base", base, "-o", "out", "--name", "x", "--version", version)


def test_a_folder_that_may_not_be_written(shell: Shell, models: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = models
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    shell.fail(14, "pack", tuned, "--base", base, "-o", "file/pack", "--name", "x", "--version", "1.0")
