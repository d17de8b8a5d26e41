"""``skillhub publish`` as a process: what it says before, and what it does."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub import hub
from skillhub.signing import verify_digest
from tests.support.commands import Shell
from tests.support.faults import faulty_proxy
from tests.support.packs import make_pack
from tests.support.registry_process import RegistryProcess, running_registry


def index_of(registry: RegistryProcess, name: str) -> list[dict[str, object]]:
    read = hub.read_releases(hub.Registry("hub", registry.endpoint, registry.token), name)
    return [json.loads(line) for line in read.data.splitlines()] if read else []


def test_a_dry_run_says_everything_and_sends_nothing_that_writes(
    shell: Shell, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_pack(tmp_path / "pack", "dry-pack", "1.0")
    name = f"{registry.user}/dry-pack"
    with faulty_proxy(registry.endpoint) as proxy:
        through = Shell(shell.home, proxy.endpoint, shell.token)
        told = through.json("publish", "pack", name, "--dry-run")
        done = through.run("publish", "pack", name, "--dry-run")
        assert {request.split()[0] for request in proxy.seen} <= {"GET", "HEAD"}
    assert hub.repository_head(hub.Registry("hub", registry.endpoint, registry.token), name) is None
    sizes = {one["path"]: one["size"] for one in told["files"]}
    folder = "releases/1.0/variants/"
    assert {path for path in sizes if not path.startswith(folder)} == {
        "README.md",
        "releases.jsonl",
        "releases/1.0/skillpack.json",
        "skillpack.json",
    }
    payload = [file for file in (tmp_path / "pack" / "variants").rglob("*") if file.is_file()]
    assert sorted(size for path, size in sizes.items() if path.startswith(folder)) == sorted(
        file.stat().st_size for file in payload
    )
    assert told["dry_run"] and told["creates_repository"] and not told["already_there"]
    assert (told["event"]["event"], told["event"]["manifest"]) == ("release", told["digest"])
    assert [one["code"] for one in told["findings"]] == ["no-evaluation", "base-license-unknown"]
    assert done.returncode == 0 and "Nothing was sent." in done.stdout and "in a new repository" in done.stdout
    assert done.stderr.startswith("warning: Nothing says how well")

    shell.succeed("publish", "pack", name)
    again = shell.json("publish", "pack", name, "--dry-run")
    assert again["already_there"] and again["files"] == [] and again["event"] is None
    assert "nothing would be done" in shell.succeed("publish", "pack", name, "--dry-run")


def test_a_dry_run_needs_no_token(shell: Shell, registry: RegistryProcess, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "dry-pack", "2.0")
    anonymous = Shell(shell.home, shell.endpoint)
    assert anonymous.json("publish", "pack", "somebody/dry-pack", "--dry-run")["version"] == "2.0"
    assert "token" in anonymous.fail(9, "publish", "pack", "somebody/dry-pack")
    (tmp_path / "pack" / "extra").write_text("x")
    assert "not listed" in anonymous.fail(6, "publish", "pack", "somebody/dry-pack", "--dry-run")


def test_what_is_published_agrees_with_the_dry_run(shell: Shell, registry: RegistryProcess, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "planned-pack", "1.0")
    name = f"{registry.user}/planned-pack"
    planned = shell.json("publish", "pack", name, "--dry-run")
    published = shell.json("publish", "pack", name)
    assert published["digest"] == planned["digest"] and published["findings"] == planned["findings"]
    assert index_of(registry, name) == [planned["event"]]
    info = HfApi(endpoint=registry.endpoint, token=registry.token).model_info(name, files_metadata=True)
    there = {one.rfilename: one.size for one in info.siblings or ()}
    assert {one["path"]: one["size"] for one in planned["files"]}.items() <= there.items()
    assert not published["already_there"] and shell.json("publish", "pack", name)["already_there"]


def test_the_registry_lists_the_pack_under_its_base(shell: Shell, registry: RegistryProcess, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "listed-pack", "1.0", repo="acme/tree-base")
    shell.succeed("publish", "pack", f"{registry.user}/listed-pack")
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    found = [model.id for model in api.list_models(filter="base_model:adapter:acme/tree-base")]
    assert found == [f"{registry.user}/listed-pack"]


def test_with_a_key_every_release_is_signed_and_said_so(
    shell: Shell, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_pack(tmp_path / "1", "sealed-pack", "1.0")
    make_pack(tmp_path / "2", "sealed-pack", "1.1")
    name = f"{registry.user}/sealed-pack"
    assert "skillhub key new" in shell.fail(4, "publish", "1", name, "--sign")
    signer = shell.json("key", "new")["signer"]
    assert f"signed by {signer}" in shell.succeed("publish", "1", name, "--dry-run")
    assert f"Signed by {signer}." in shell.succeed("publish", "1", name)
    event = index_of(registry, name)[0]
    assert verify_digest(signer.removeprefix("ed25519:"), str(event["manifest"]), str(event["signature"]))
    assert "--allow-signer-change" in shell.fail(7, "publish", "2", name, "--no-sign")
    assert len(index_of(registry, name)) == 1
    assert "Not signed." in shell.succeed("publish", "2", name, "--no-sign", "--allow-signer-change")
    assert "signature" not in index_of(registry, name)[1]


def test_a_readme_that_people_wrote_in_survives_a_release(
    shell: Shell, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_pack(tmp_path / "1", "told-pack", "1.0")
    make_pack(tmp_path / "2", "told-pack", "1.1")
    name = f"{registry.user}/told-pack"
    shell.succeed("publish", "1", name)
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    card = Path(api.hf_hub_download(name, "README.md", local_dir=tmp_path / "card")).read_text()
    written = card.replace("---\n\n", "pipeline_tag: text-generation\n---\n\nMade with love.\n\n", 1) + "\nThanks.\n"
    api.upload_file(path_or_fileobj=written.encode(), path_in_repo="README.md", repo_id=name)
    shell.succeed("publish", "2", name)
    card = Path(api.hf_hub_download(name, "README.md", local_dir=tmp_path / "card2")).read_text()
    for words in ("pipeline_tag: text-generation", "Made with love.", "Thanks.", "version 1.1:"):
        assert words in card
    broken = b"---\n{license: mit}\n---\nMine.\n"  # which we cannot keep line by line
    api.upload_file(path_or_fileobj=broken, path_in_repo="README.md", repo_id=name)
    make_pack(tmp_path / "3", "told-pack", "1.2")
    done = shell.run("publish", "3", name)
    assert done.returncode == 0 and "README.md stays as it is" in done.stderr
    assert Path(api.hf_hub_download(name, "README.md", local_dir=tmp_path / "card3")).read_bytes() == broken


def test_a_pinned_pack_goes_to_its_own_registry(shell: Shell, registry: RegistryProcess, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "inner-pack", "1.0")
    elsewhere = Shell(shell.home, "http://127.0.0.1:9", None)
    (tmp_path / "skillhub.toml").write_text(
        f'[[registry]]\nname = "corp"\nurl = "{registry.endpoint}"\npacks = ["{registry.user}/*"]\n'
        f'[[registry]]\nname = "other"\nurl = "{registry.endpoint}"\n'
    )
    told = elsewhere.json("publish", "pack", f"{registry.user}/inner-pack", "--dry-run")
    assert told["endpoint"] == registry.endpoint
    elsewhere.fail(8, "publish", "pack", "acme/inner-pack", "-q", "--dry-run")  # HF_ENDPOINT, where nothing listens
    done = elsewhere.json(
        "publish", "pack", f"{registry.user}/inner-pack", "--registry", "corp", "--token", registry.token
    )
    assert done["endpoint"] == registry.endpoint and done["commit"]
    assert "No registry is called nowhere" in elsewhere.fail(
        4, "publish", "pack", "acme/inner-pack", "--registry", "nowhere"
    )


def test_a_vendored_folder_takes_nothing(shell: Shell, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "inner-pack", "1.0")
    (tmp_path / "vendored").mkdir()
    (tmp_path / "vendored" / "vendor.json").write_text('{"registries":["hub"],"schema":0}\n')
    assert "vendored folder" in shell.fail(2, "publish", "pack", "acme/inner-pack", "--registry", "./vendored")


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_a_terminal_shows_what_is_sent(shell: Shell, registry: RegistryProcess, tmp_path: Path) -> None:
    make_pack(tmp_path / "pack", "shown-pack", "1.0", size=400_000)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "skillhub", "publish", "pack", f"{registry.user}/shown-pack"]
    done = subprocess.Popen(command, env=shell.variables, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to any more with EIO
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    said, _ = done.communicate()
    assert done.returncode == 0 and b"Published" in said
    assert b"Checking shown-pack 1.0" in shown and b"shown-pack" in shown.partition(b"Sending ")[2]


def test_what_a_pack_requires_may_be_at_another_configured_registry(
    shell: Shell, registry: RegistryProcess, tmp_path: Path
) -> None:
    make_pack(tmp_path / "1", "base-skill", "1.0")
    shell.succeed("publish", "1", f"{registry.user}/base-skill")
    make_pack(tmp_path / "2", "next-skill", "1.0", requires=[f"{registry.user}/base-skill>=1", f"{registry.user}/none"])
    (tmp_path / "skillhub.toml").write_text(f'[[registry]]\nname = "corp"\nurl = "{registry.endpoint}"\n')
    with running_registry(tmp_path / "other") as other:
        told = Shell(shell.home, other.endpoint).json("publish", "2", f"{other.user}/next-skill", "--dry-run")
        assert told["endpoint"] == other.endpoint
        found = [one for one in told["findings"] if "requirement" in one["code"]]
        assert [(one["code"], one["message"].split(",")[0]) for one in found] == [
            ("unknown-requirement", f"{registry.user}/none")
        ]
