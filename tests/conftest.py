"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.commands import Shell
from tests.support.registry_process import RegistryProcess, running_registry

# How long an example takes says something about the machine's other work, not about the code.
settings.register_profile("skillhub", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("skillhub")


@pytest.fixture(scope="session")
def folder_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A real registry process with an empty data folder, one for the whole run."""
    with running_registry(tmp_path_factory.mktemp("registry")) as process:
        yield process


@pytest.fixture(scope="session")
def registry(folder_registry: RegistryProcess) -> RegistryProcess:
    """The registry that the tests talk to."""
    return folder_registry


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for the store, the environments and the state, and no token or registry from outside."""
    for variable in ("SKILLHUB_CACHE", "SKILLHUB_HOME", "SKILLHUB_STATE", "SKILLHUB_CONFIG", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "homes" / variable.lower()))
    outside = "HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE HUGGING_FACE_HUB_TOKEN SKILLHUB_OFFLINE SKILLHUB_POLICY SKILLHUB_SIGNING_KEY"
    for variable in outside.split():
        monkeypatch.delenv(variable, raising=False)
    # huggingface_hub reads its folders once, when it is imported
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "homes" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "homes" / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", str(tmp_path / "homes" / "stored_tokens"))
    return tmp_path / "homes"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny language model with a tokenizer, and a fine-tune of it."""
    from tests.support.tiny_models import add_tokenizer, save_model, tune  # torch: only for tests that need it

    folder = tmp_path_factory.mktemp("models")
    base = save_model("tied", folder / "base")
    add_tokenizer(base)
    return base, tune(base, folder / "tuned", size=0.05)


@pytest.fixture
def shell(tmp_path: Path, registry: RegistryProcess) -> Shell:
    """The shell of a user with an empty home who talks to the registry."""
    return Shell(tmp_path, registry.endpoint, registry.token)
