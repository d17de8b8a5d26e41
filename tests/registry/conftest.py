"""Fixtures of the registry's own tests."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi

from tests.support.registry_process import RegistryProcess


@pytest.fixture(scope="session")
def guest_token(registry: RegistryProcess) -> str:
    """The token of somebody who may read what is public, and is nobody's member."""
    return registry.add_user("guest")


@pytest.fixture
def guest(registry: RegistryProcess, guest_token: str) -> HfApi:
    """The client of somebody who may read and is no member."""
    return HfApi(endpoint=registry.endpoint, token=guest_token)
