"""The command line as processes: help, the whole story on a tiny model, JSON output, quick answers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from skillhub.cli import COMMANDS, commands
from tests.support.commands import Shell


def test_every_command_has_help_with_an_example(tmp_path: Path) -> None:
    overview = Shell(tmp_path).succeed("--help")
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in overview
        assert line.rstrip(".").split()[0] in overview
    for path, command in every_command(commands, "skillhub"):
        text = command.get_help(click.Context(command, info_name=path))
        example = text.split("Example:")[1]
        assert path in example, path
        assert "\\b" not in text
        assert isinstance(command, click.Group) or "--json" in text or path.startswith("skillhub completion"), path


def every_command(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands below a group, and those below them, with the words that call them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from every_command(command, f"{path} {name}")


def test_readme_names_every_command() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Commands")[1].split("## Measured")[0]
    documented = {
        word for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)", cell)
    }
    assert documented >= set(COMMANDS)


def test_an_unknown_command_names_the_near_one(tmp_path: Path) -> None:
    assert "Did you mean 'install'" in Shell(tmp_path).fail(2, "instal")


def test_an_unknown_option_is_a_usage_error_in_json_too(tmp_path: Path) -> None:
    done = Shell(tmp_path).run("list", "--jsn", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "usage"


def test_pack_publish_install_use_and_uninstall(shell: Shell, models: tuple[Path, Path], registry: Any) -> None:
    base, tuned = models
    name = f"{registry.user}/story-pack"
    packed = shell.json("pack", tuned, "--base", base, "-o", "pack", "--name", "story-pack", "--version", "1.0.0")
    assert packed["fingerprint"] == shell.json("base", "fingerprint", base)["fingerprint"]

    published = shell.json("publish", "pack", name)
    assert published["digest"] == packed["digest"]
    installed = shell.json("install", f"{name}>=1", "--base", base)["installed"]
    assert [(one["name"], one["digest"]) for one in installed] == [(name, packed["digest"])]

    listed = shell.json("list")["packs"]
    assert [(one["name"], one["version"]) for one in listed] == [(name, "1.0.0")]
    assert shell.json("show", name)["manifest"]["name"] == "story-pack"
    assert shell.json("verify")["ok"]
    answer = shell.json("run", "--base", base, "--pack", name, "--max-new-tokens", "4", "a b c")
    assert isinstance(answer["answer"], str)
    shell.succeed("fuse", "--base", base, "--pack", f"{name}@0.5", "-o", "fused")
    assert (shell.home / "fused" / "model.safetensors").is_file()
    assert (shell.home / "fused" / "tokenizer.json").is_file()

    assert shell.json("uninstall", name)["changes"][0]["name"] == name
    assert shell.json("list")["packs"] == []


def test_run_without_a_prompt_answers_each_line(shell: Shell, models: tuple[Path, Path]) -> None:
    base, tuned = models
    shell.succeed("pack", tuned, "--base", base, "-o", "pack", "--name", "talk", "--version", "1.0")
    output = shell.succeed("run", "--base", base, "--pack", "./pack", "--max-new-tokens", "2", stdin="a b\nc d\n")
    assert len(output.splitlines()) >= 2


def test_evaluate_fills_the_manifest(shell: Shell, models: tuple[Path, Path]) -> None:
    base, tuned = models
    shell.succeed("pack", tuned, "--base", base, "-o", "pack", "--name", "judged", "--version", "1.0")
    (shell.home / "rows.jsonl").write_text('{"prompt": "a b", "answer": "c d"}\n' * 3, encoding="utf-8")
    asked = ["evaluate", "pack", "--base", base, "--tuned", tuned, "--rows", "rows.jsonl", "--task", "letters"]
    told = shell.json(*asked)["evaluation"]
    noted = shell.json("show", "./pack")["manifest"]["variants"][0]["evaluation"]
    assert noted == told
    nll = next(one for one in noted if one["metric"] == "nll")
    assert (nll["task"], nll["rows"]) == ("letters", 3)
    # the tiny pack keeps the small tensors exactly, so it scores what the fine-tune scores
    assert nll["pack"] == pytest.approx(nll["tuned"], rel=0.01) and nll["base"] != nll["tuned"]
    assert "letters" in shell.succeed(*asked)


def test_pack_reads_the_authors_file(shell: Shell, models: tuple[Path, Path]) -> None:
    base, tuned = models
    text = f'name = "from-file"\nversion = "0.1"\nsummary = "Said once"\nbase = "{base}"\n[skills]\ntags = ["tiny"]\n'
    (shell.home / "skillpack.toml").write_text(text, encoding="utf-8")
    shell.succeed("pack", tuned, "-o", "pack", "--version", "0.2")
    manifest = shell.json("show", "./pack")["manifest"]
    assert (manifest["name"], manifest["version"], manifest["summary"]) == ("from-file", "0.2", "Said once")
    assert manifest["skills"]["tags"] == ["tiny"]


def test_tables_fit_a_terminal_of_eighty_columns(shell: Shell, models: tuple[Path, Path]) -> None:
    base, tuned = models
    shell.succeed("pack", tuned, "--base", base, "-o", "first", "--name", "narrow", "--version", "1.0")
    shell.succeed("install", "./first", "--base", base)
    pack = ["pack", str(tuned), "--base", str(base), "-o", "second", "--name", "narrow", "--version", "1.0"]
    for arguments in (pack, ["list"]):
        shown = on_a_terminal(shell, arguments)
        assert "narrow" in shown
        assert max(map(len, shown.splitlines())) <= 80


def on_a_terminal(shell: Shell, arguments: list[str], *, code: int = 0) -> str:
    """Run a command whose stdout is a terminal of 80 columns, and that must end with ``code``; return what it shows."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "skillhub", *arguments, "--no-color"]
    done = subprocess.run(
        command, env=shell.variables, cwd=shell.home, stdout=theirs, stderr=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stderr) == (code, b"")
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to any more with EIO
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "--environment", "."], ["show", "./pack"], ["verify", "-e", "."]]
)
def test_quick_commands_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    from skillhub.authorfile import AuthorFile
    from skillhub.packs import write_manifest

    write_manifest(tmp_path / "pack", AuthorFile(name="quick", version="1").to_manifest())
    (tmp_path / "skillhub.toml").touch()
    shell = Shell(tmp_path)
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "skillhub", *arguments],
        env=shell.variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "huggingface_hub", "numpy", "requests"}
