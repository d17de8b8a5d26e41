"""Finding packs on a live registry, and downloading them without installing, as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from skillhub.fingerprint import fingerprint_checkpoint
from tests.support.commands import Shell
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry
from tests.support.repositories import put_adapter
from tests.support.tiny_models import save_model
from tests.test_cli import on_a_terminal

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry with three packs, and a model that is none."""
    with running_registry(tmp_path_factory.mktemp("full")) as process:
        home = tmp_path_factory.mktemp("author")
        shell = Shell(home, process.endpoint, process.token)
        make_pack(home / "shared", "shared")
        make_pack(home / "math", "math-pack", "1.0.0", (BASE, OTHER_BASE), requires=[f"{process.user}/shared"])
        make_pack(home / "newer", "math-pack", "1.1.0", (BASE,), requires=[f"{process.user}/shared"])
        make_pack(home / "chat", "chat-pack", repo="acme/other-base")
        for folder, name in (
            ("shared", "shared"),
            ("math", "math-pack"),
            ("newer", "math-pack"),
            ("chat", "chat-pack"),
        ):
            shell.succeed("publish", folder, f"{process.user}/{name}")
        api = HfApi(endpoint=process.endpoint, token=process.token)
        api.create_repo(f"{process.user}/math-model")
        api.update_repo_settings(f"{process.user}/chat-pack", private=True)
        put_adapter(process, f"{process.user}/lora")
        yield process


@pytest.fixture
def user(full: RegistryProcess, tmp_path: Path) -> Shell:
    """Somebody without a token."""
    return Shell(tmp_path, full.endpoint)


def found(shell: Shell, *arguments: str) -> list[str]:
    return [one["name"].rpartition("/")[2] for one in shell.json("search", *arguments)["packs"]]


def test_search_finds_packs_by_words_owner_tag_and_base(user: Shell, full: RegistryProcess) -> None:
    owner = Shell(user.home, full.endpoint, full.token)
    assert sorted(found(user)) == ["math-pack", "shared"]  # no model, and nobody else's private pack
    assert sorted(found(owner)) == ["chat-pack", "math-pack", "shared"]
    assert found(user, "math") == ["math-pack"]
    assert found(owner, "--base", "acme/other-base") == ["chat-pack"]
    assert found(user, "--base", OTHER_BASE) == ["math-pack"]
    assert sorted(found(owner, "--base", BASE)) == ["chat-pack", "math-pack", "shared"]
    model = save_model("tied", user.home / "model")
    assert found(user, "--base", "./model") == []
    make_pack(user.home / "fits", "fitting", fingerprints=(fingerprint_checkpoint(model).fingerprint,))
    owner.succeed("publish", "fits", f"{full.user}/fitting")
    assert found(user, "--base", "./model") == ["fitting"]
    HfApi(endpoint=full.endpoint, token=full.token).delete_repo(f"{full.user}/fitting")
    assert sorted(found(user, "--tag", "math", "--owner", full.user)) == ["math-pack", "shared"]
    assert found(user, "--owner", "nobody") == found(user, "--tag", "cooking") == []
    assert len(found(user, "--limit", "1")) == 1
    row = owner.json("search", "chat")["packs"][0]
    assert (row["registry"], row["private"], row["gated"]) == ("hub", True, False)
    assert (row["base_models"], row["summary"]) == (["acme/other-base"], "chat-pack for tests")
    assert row["last_modified"].startswith("20")


def test_search_shows_a_table_and_names_that_look_alike(user: Shell, full: RegistryProcess) -> None:
    shown = on_a_terminal(user, ["search"])
    assert f"{full.user}/math-pack" in shown and "acme/base-model" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "look alike: " + f"{full.user}/math-pack" in user.succeed("search", "maht-pack")
    assert user.json("search", f"{full.user}/math-pakc")["near"] == [f"{full.user}/math-pack"]
    assert user.json("search", "cooking") == {"schema": 0, "packs": [], "near": []}


def test_a_registry_and_a_token_can_be_named(user: Shell, full: RegistryProcess) -> None:
    stranger = Shell(user.home)
    named = ["--registry", full.endpoint, "--token", full.token]
    assert sorted(found(stranger, *named)) == ["chat-pack", "math-pack", "shared"]
    assert sorted(found(stranger, *named[:2])) == ["math-pack", "shared"]
    private = f"{full.user}/chat-pack"
    stranger.fail(4, "show", "--remote", private, *named[:2])
    assert stranger.json("show", "--remote", "--refresh", private, *named)["version"] == "1.0.0"
    (told,) = stranger.json("download", private, "-o", "packs", "--refresh", *named)["downloaded"]
    assert told["name"] == private
    (user.home / "skillhub.toml").write_text(
        f'[[registry]]\nname = "corp"\nurl = "{full.endpoint}"\n', encoding="utf-8"
    )
    assert stranger.json("search", "shared", "--registry", "corp")["packs"][0]["registry"] == "corp"
    stranger.fail(4, "search", "--registry", "elsewhere")


def test_search_says_what_it_cannot_do(user: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--base OWNER/NAME" in user.fail(2, "search", "--base", "model")
    assert "is not a fingerprint" in user.fail(2, "search", "--base", "skb1:12")
    user.fail(4, "search", "--base", "./model")
    assert "cannot be reached" in Shell(user.home).fail(8, "search", "math")


def test_download_makes_folders_that_can_be_installed(user: Shell, full: RegistryProcess) -> None:
    name = f"{full.user}/math-pack"
    told = user.json("download", f"{name}<1.1", "-o", "packs")["downloaded"]
    assert [(one["name"], one["version"]) for one in told] == [(name, "1.0.0"), (f"{full.user}/shared", "1.0.0")]
    folder = user.home / "packs" / "math-pack"
    assert told[0]["folder"] == str(folder) and len(list((folder / "variants").iterdir())) == 2
    assert not list(user.home.rglob("receipt.json"))
    (user.home / "skillhub.toml").touch()
    other = Shell(user.home)  # which reaches no registry
    installed = other.json("install", "./packs/math-pack", "./packs/shared", "--base", BASE)["installed"]
    assert {one["digest"] for one in installed} == {one["digest"] for one in told}


def test_download_takes_one_base_and_leaves_what_is_there(user: Shell, full: RegistryProcess) -> None:
    wanted = ["download", f"{full.user}/math-pack", "-o", "packs", "--no-deps", "--base", BASE]
    (told,) = user.json(*wanted)["downloaded"]
    assert told["version"] == "1.1.0"
    path = next((user.home / "packs" / "math-pack" / "variants").rglob("delta-00001.safetensors"))
    before = path.stat().st_ino
    user.succeed(*wanted)
    assert path.stat().st_ino == before
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "math-pack exists already" in user.fail(2, *wanted)


def test_download_fetches_adapters(user: Shell, full: RegistryProcess) -> None:
    wanted = ["download", f"peft:{full.user}/lora", f"{full.user}/shared", "-o", "packs"]
    pack, adapter = user.json(*wanted)["downloaded"]
    assert (pack["kind"], adapter["kind"], adapter["name"]) == ("pack", "peft", f"{full.user}/lora")
    folder = user.home / "packs" / "lora"
    assert adapter["folder"] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert "Downloaded" in user.succeed(*wanted)  # it is there already, and whole
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "lora exists already" in user.fail(2, *wanted)


def test_download_keeps_the_policy(user: Shell, full: RegistryProcess) -> None:
    policy = user.home / "config" / "policy.toml"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text('allowed_owners = ["acme"]\n', encoding="utf-8")
    assert "the policy allows" in user.fail(7, "download", f"peft:{full.user}/lora", "-o", "packs")
    assert "the policy allows" in user.fail(3, "download", f"{full.user}/shared", "-o", "packs")
    policy.write_text("cooldown_days = 3\n", encoding="utf-8")
    assert "the policy asks for" in user.fail(7, "download", f"peft:{full.user}/lora", "-o", "packs")
    assert not (user.home / "packs").exists()


def test_download_works_offline_from_what_was_seen(user: Shell, full: RegistryProcess) -> None:
    name = f"{full.user}/math-pack"
    assert "never read" in user.fail(8, "download", name, "-o", "packs", "--offline")
    user.succeed("download", name, "-o", "packs")
    told = Shell(user.home, full.endpoint).json("download", name, "-o", "again", "--offline", "--base", BASE)
    assert [one["version"] for one in told["downloaded"]] == ["1.1.0", "1.0.0"]
    assert "not locked" in user.fail(8, "download", f"peft:{full.user}/lora", "-o", "packs", "--offline")


def test_download_takes_a_release_at_a_commit_and_a_short_name_of_a_configured_owner(
    user: Shell, full: RegistryProcess
) -> None:
    (user.home / "skillhub.toml").write_text(f'owners = ["{full.user}"]', encoding="utf-8")
    told = user.json("download", "math-pack==1.0.0", "-o", "packs", "--no-deps")["downloaded"]
    assert [(one["name"], one["version"]) for one in told] == [(f"{full.user}/math-pack", "1.0.0")]
    commit = HfApi(endpoint=full.endpoint).model_info(f"{full.user}/math-pack").sha
    told = user.json("download", f"{full.user}/math-pack@{commit}", "-o", "at")["downloaded"]
    assert told[0]["version"] == "1.1.0"


def test_download_says_what_it_cannot_fetch(user: Shell, full: RegistryProcess) -> None:
    make_pack(user.home / "own", "own")
    assert "is a folder already" in user.fail(2, "download", "./own", "-o", "packs")
    assert "no PEFT adapter" in user.fail(4, "download", f"peft:{full.user}/math-model", "-o", "packs")
    assert "SkillPack" in user.fail(4, "download", f"peft:{full.user}/shared", "-o", "packs")
    user.fail(4, "download", f"{full.user}/absent", "-o", "packs")
    user.fail(3, "download", f"{full.user}/shared>9", "-o", "packs")
    user.fail(5, "download", f"{full.user}/shared", "-o", "packs", "--base", OTHER_BASE)
    assert not (user.home / "packs").exists()
