"""32 processes install the same packs at once, into one store and 8 environments."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from skillhub.environments import as_environment, damaged_packs, installed_packs, unfinished_paths
from skillhub.files import sha256_of_file
from skillhub.lockfile import read_lock
from skillhub.packs import Pack
from skillhub.store import Store
from tests.support.commands import Shell
from tests.support.faults import faulty_proxy
from tests.support.packs import BASE, OTHER_BASE, make_pack
from tests.support.registry_process import RegistryProcess

PROCESSES, ENVIRONMENTS = 32, 8
NAMES = ("crowd-one", "crowd-two", "crowd-shared")


def publish_packs(author: Shell, owner: str) -> list[Pack]:
    """Publish three packs, of which two require the third."""
    packs = []
    for name in reversed(NAMES):
        requires = [] if name == NAMES[2] else [f"{owner}/{NAMES[2]}"]
        pack = make_pack(author.home / name, name, "1.0", (BASE, OTHER_BASE), requires=requires, size=300_000)
        author.succeed("publish", name, f"{owner}/{name}")
        packs.append(pack)
    return packs


def wanted_blobs(packs: list[Pack]) -> dict[str, str]:
    """Return digest → path in its repository of every file that installing for one base needs."""
    wanted = {}
    for pack in packs:
        folder = f"{pack.manifest.name}/resolve/COMMIT/releases/1.0"
        wanted[pack.digest] = f"{folder}/skillpack.json"
        for entry in pack.variant_for(BASE).files:
            wanted[entry.sha256] = f"{folder}/{entry.path}"
    return wanted


def test_all_succeed_and_each_blob_is_downloaded_once(registry: RegistryProcess, tmp_path: Path) -> None:
    author = Shell(tmp_path, registry.endpoint, registry.token)
    packs = publish_packs(author, registry.user)
    wanted = wanted_blobs(packs)
    requirements = [f"{registry.user}/{name}" for name in NAMES[:2]]
    with faulty_proxy(registry.endpoint) as proxy:
        shell = Shell(tmp_path, proxy.endpoint)
        command = [sys.executable, "-m", "skillhub", "install", *requirements, "--base", BASE, "--json"]
        processes = [
            subprocess.Popen(
                [*command, "-e", f"env{number % ENVIRONMENTS}"],
                # so that the proxy sees every transfer, and a crash leaves its stack
                env={**shell.variables, "HF_HUB_DISABLE_XET": "1", "PYTHONFAULTHANDLER": "1"},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(PROCESSES)
        ]
        for process in processes:
            output, _ = process.communicate()
            assert process.returncode == 0, output
        requested = Counter(download for request in proxy.seen if (download := _download(request, registry.user)))
    assert requested == Counter(dict.fromkeys(wanted.values(), 1))

    store = Store(Path(shell.json("cache", "dir")["store"]))
    stored = [path for path in (store.folder / "sha256").rglob("*") if path.is_file()]
    assert sorted(path.name for path in stored) == sorted(wanted)
    assert all(sha256_of_file(path) == path.name for path in stored)
    assert not list((store.folder / "staging").iterdir())
    for number in range(ENVIRONMENTS):
        _check(tmp_path / f"env{number}")


def _download(request: str, owner: str) -> str | None:
    """Return which file of a release was downloaded, without the owner, and at whatever commit."""
    method, _, address = request.partition(" ")
    path = urlsplit(address).path
    if method != "GET" or "/resolve/" not in path or "/releases/" not in path:
        return None
    repository, _, rest = path.removeprefix(f"/{owner}/").partition("/resolve/")
    return f"{repository}/resolve/COMMIT/{rest.partition('/')[2]}"


def _check(folder: Path) -> None:
    environment = as_environment(folder)
    installed = installed_packs(environment)
    assert [one.name.name for one in installed] == sorted(NAMES)
    assert damaged_packs(environment) == [] and not list(unfinished_paths(environment))
    assert [finding for one in installed for finding in one.verify()] == []
    lock = read_lock(environment.lock_path)
    assert lock and len(lock.packs) == 3
