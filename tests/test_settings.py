"""Folders and addresses from environment variables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skillhub import settings

FOLDERS = [
    ("SKILLHUB_CACHE", settings.cache_folder),
    ("SKILLHUB_HOME", settings.home_folder),
    ("SKILLHUB_STATE", settings.state_folder),
]


@pytest.mark.parametrize(("variable", "folder"), FOLDERS)
def test_a_variable_chooses_the_folder(
    variable: str, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/elsewhere")
    assert folder() == tmp_path / "elsewhere"


def test_without_variables_the_three_folders_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _ in FOLDERS:
        monkeypatch.setenv(variable, "")
    folders = {folder() for _, folder in FOLDERS}
    assert len(folders) == 3
    assert all(folder.is_absolute() and folder.name == "skillhub" for folder in folders)


@pytest.mark.parametrize("value", [None, "", "https://huggingface.co/"])
def test_the_registry_is_the_hub_unless_said_otherwise(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_ENDPOINT", value)
    assert settings.endpoint() == "https://huggingface.co"


def test_the_registry_is_named_without_a_trailing_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8080//")
    assert settings.endpoint() == "http://127.0.0.1:8080"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", "On", "0", "", "no", "2"])
def test_offline_agrees_with_huggingface_hub(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

    for other in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SKILLHUB_OFFLINE"):
        monkeypatch.delenv(other, raising=False)
    assert not settings.offline()
    monkeypatch.setenv(variable, value)
    assert settings.offline() == (value.upper() in ENV_VARS_TRUE_VALUES)


def test_settings_are_read_when_asked_for_not_when_imported() -> None:
    code = (
        "import os, skillhub.settings as settings; before = settings.offline(); "
        "os.environ['SKILLHUB_OFFLINE'] = '1'; print(before, settings.offline())"
    )
    environment = {"PATH": "", "PYTHONPATH": str(Path(settings.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["False", "True"]
