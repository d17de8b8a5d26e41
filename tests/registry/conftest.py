"""Fixtures of the registry's own tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi

from tests.support.postgresql_server import PostgreSQLServer, running_postgresql
from tests.support.registry_process import RegistryProcess
from tests.support.replicas import ReplicatedRegistry, running_replicas
from tests.support.s3_server import running_s3

REPLICATED = frozenset(
    f"tests.registry.test_{name}"
    for name in (
        *("access", "commits", "discussions", "gates", "large_files", "models"),
        *("moving", "packs", "pull_requests", "signin", "signin_log", "stock_client", "xet"),
    )
)
"""The modules whose tests run twice: on a registry in a folder, and on two replicas with PostgreSQL and S3."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run some modules' tests on both kinds of registry."""
    if "registry" in metafunc.fixturenames and metafunc.module.__name__ in REPLICATED:
        metafunc.parametrize("registry", ["folder", "replicas"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQLServer]:
    """A real PostgreSQL server."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a store that speaks S3's protocol."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def replicas(
    postgresql: PostgreSQLServer, s3: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReplicatedRegistry]:
    """A registry of two replicas behind one address."""
    with running_replicas(tmp_path_factory.mktemp("replicas"), postgresql, s3, "shared") as process:
        yield process


@pytest.fixture(scope="session")
def registry(request: pytest.FixtureRequest) -> RegistryProcess:
    """A registry; which kind, the module decides."""
    kind = getattr(request, "param", "folder")
    process: RegistryProcess = request.getfixturevalue("replicas" if kind == "replicas" else "folder_registry")
    return process


@pytest.fixture(scope="session")
def guest_token(registry: RegistryProcess) -> str:
    """The token of somebody who may read what is public, and is nobody's member."""
    return registry.find_user("guest")


@pytest.fixture
def guest(registry: RegistryProcess, guest_token: str) -> HfApi:
    """The client of somebody who may read and is no member."""
    return HfApi(endpoint=registry.endpoint, token=guest_token)
