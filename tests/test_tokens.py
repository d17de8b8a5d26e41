"""No token reaches another registry than its own: two of them, both listened to.

Each registry stands behind a proxy that keeps all it hears: addresses, headers and bodies.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.commands import Shell
from tests.support.faults import ELSEWHERE, FaultyProxy, faulty_proxy
from tests.support.packs import BASE, make_pack
from tests.support.registry_process import RegistryProcess, running_registry


@dataclass(frozen=True)
class Listened:
    """A registry, the proxy in front of it, and the token of its user."""

    proxy: FaultyProxy
    user: str
    token: str

    @property
    def endpoint(self) -> str:
        return self.proxy.endpoint

    def heard(self, token: str) -> list[str]:
        """Return the requests that had a token anywhere in them, by their first lines."""
        return [one.splitlines()[0] for one in self.proxy.heard if token in one]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with running_registry(tmp_path_factory.mktemp("second")) as process:
        yield process


@pytest.fixture
def hub_registry(registry: RegistryProcess) -> Iterator[Listened]:
    """The registry that HF_ENDPOINT names."""
    with faulty_proxy(registry.endpoint) as proxy:
        yield Listened(proxy, registry.user, registry.token)


@pytest.fixture
def corp(second: RegistryProcess) -> Iterator[Listened]:
    """Another one."""
    with faulty_proxy(second.endpoint) as proxy:
        yield Listened(proxy, second.user, second.token)


@pytest.fixture
def user(tmp_path: Path, hub_registry: Listened, corp: Listened) -> Shell:
    """A user with HF_TOKEN for the one and a saved token for the other, which is called corp."""
    shell = Shell(tmp_path, hub_registry.endpoint, hub_registry.token)
    shell.succeed("config", "registry", "add", "corp", corp.endpoint)
    shell.succeed("login", "--registry", "corp", stdin=corp.token)
    return shell


def assert_apart(hub_registry: Listened, corp: Listened) -> None:
    """Check that each registry heard its own token, and never the other's."""
    assert hub_registry.heard(hub_registry.token) and corp.heard(corp.token)
    assert not corp.heard(hub_registry.token)
    assert not hub_registry.heard(corp.token)


def publish(user: Shell, owner: str, name: str, *more: str) -> str:
    """Publish a small pack; returns its full name."""
    folder = user.home / f"{name}-{len(more)}"
    make_pack(folder, name=name, repo=None, size=3000)
    user.succeed("publish", folder, f"{owner}/{name}", *more)
    return f"{owner}/{name}"


@pytest.mark.parametrize("named", ["by its name", "by its address"])
def test_every_verb_tells_each_registry_its_own_token(
    user: Shell, hub_registry: Listened, corp: Listened, named: str
) -> None:
    there = ["--registry", "corp" if named == "by its name" else corp.endpoint]
    at_hub = publish(user, hub_registry.user, "apart-one")
    at_corp = publish(user, corp.user, "apart-two", *there)
    user.succeed("whoami")
    user.succeed("whoami", *there)
    user.succeed("search", "apart")
    user.succeed("search", "apart", *there)
    user.succeed("download", at_hub, "-o", "from-hub", "--registry", "hub")
    user.succeed("download", at_corp, "-o", "from-corp", *there)
    user.succeed("install", at_corp, "--base", BASE, "-e", "from-there", *there)
    user.succeed("install", at_corp, at_hub, "--base", BASE)
    user.succeed("upgrade")
    user.fail(4, "install", "acme/nowhere", "--base", BASE)
    user.fail(4, "install", "nowhere", "--base", BASE)
    user.succeed("logout", *there)
    assert_apart(hub_registry, corp)


def test_a_token_on_the_command_line_is_for_one_registry(user: Shell, hub_registry: Listened, corp: Listened) -> None:
    given = "hf_given_on_the_command_line"
    user.run("install", "acme/nowhere", "--base", BASE, "--token", given)
    assert hub_registry.heard(given) and not corp.heard(given)
    hub_registry.proxy.reset()
    user.run("install", "acme/nowhere", "--base", BASE, "--token", given, "--registry", "corp")
    user.run("search", "x", "--token", given, "--registry", corp.endpoint)
    user.run("login", "--token", given, "--registry", "corp")
    assert corp.heard(given) and not hub_registry.heard(given)
    assert_apart(replace(hub_registry), corp) if hub_registry.proxy.heard else None


def test_a_saved_token_of_huggingface_hub_is_for_its_endpoint(
    user: Shell, hub_registry: Listened, corp: Listened
) -> None:
    user = replace(user, token=None)
    user.succeed("login", stdin=hub_registry.token)
    user.succeed("logout", "--registry", "corp")
    corp.proxy.reset()
    user.run("whoami", "--registry", "corp")
    user.run("install", "acme/nowhere", "--base", BASE)
    user.run("search", "x", "--registry", corp.endpoint)
    assert corp.proxy.heard and not [one for one in corp.proxy.heard if "authorization" in one.lower()]
    assert hub_registry.heard(hub_registry.token)


@pytest.mark.parametrize(
    ("name", "methods", "where"),
    [
        ("sent-files", ("GET",), "/resolve/"),
        ("sent-calls", ("GET", "POST"), "/api/"),
        ("sent-all", ("GET", "POST", "PUT", "HEAD"), "/"),
    ],
)
def test_no_token_follows_a_redirect(
    user: Shell, hub_registry: Listened, corp: Listened, name: str, methods: tuple[str, ...], where: str
) -> None:
    assert hub_registry.user == corp.user  # so what is sent on is found there
    full_name = publish(user, hub_registry.user, name)
    publish(user, corp.user, name, "--registry", "corp")

    def send_on(number: int, method: str, path: str) -> str | None:
        return ELSEWHERE + corp.endpoint if method in methods and where in path else None

    hub_registry.proxy.reset(send_on)
    corp.proxy.reset()
    make_pack(user.home / "again", name=name, version="1.1.0", repo=None)
    for verb in (
        ["install", full_name, "--base", BASE, "--registry", "hub"],
        ["download", full_name, "-o", "sent-on", "--registry", "hub"],
        ["search", "sent", "--registry", "hub"],
        ["whoami"],
        ["login", "--token", hub_registry.token],
        ["publish", user.home / "again", full_name, "--registry", "hub"],
    ):
        user.run(*verb)
    assert hub_registry.heard(hub_registry.token) and corp.proxy.heard
    assert not corp.heard(hub_registry.token)
    assert not hub_registry.heard(corp.token)


def test_the_library_keeps_tokens_apart_as_well(user: Shell, hub_registry: Listened, corp: Listened) -> None:
    at_corp = publish(user, corp.user, "apart-three", "--registry", "corp")
    folder = make_pack(user.home / "four", name="apart-four", repo=None).folder
    script = f"""
import json, skillhub
there = {corp.endpoint!r}
skillhub.publish({str(folder)!r}, {corp.user + "/apart-four"!r}, registry=there)
packs = skillhub.install([{at_corp!r}, {corp.user + "/apart-four"!r}], base={BASE!r}, registry=there, environment="env")
print(json.dumps([str(one.name) for one in packs]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=user.variables, cwd=user.home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
    user.succeed("whoami")
    assert_apart(hub_registry, corp)
