"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.registry_process import RegistryProcess, running_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A real registry process with an empty data folder, one for the whole run."""
    with running_registry(tmp_path_factory.mktemp("registry")) as process:
        yield process
