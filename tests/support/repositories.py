"""Changing repositories on a live registry from outside skillhub, as their owners may."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from skillhub.releases import RELEASES_FILE, RELEASES_SCHEMA, Event, append_event
from tests.support.packs import payload
from tests.support.registry_process import RegistryProcess


def put_files(registry: RegistryProcess, name: str, files: dict[str, bytes]) -> str:
    """Commit files to a repository, which is made where there is none; returns the commit."""
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    api.create_repo(name, exist_ok=True)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return str(api.create_commit(name, operations=operations, commit_message="Change it").oid)


def put_adapter(registry: RegistryProcess, name: str, seed: str = "") -> str:
    """Commit a PEFT adapter whose weights the seed decides; returns the commit."""
    config = b'{"peft_type": "LORA", "base_model_name_or_path": "acme/base-model"}'
    weights = payload(f"{name} {seed}", 3000)
    return put_files(registry, name, {"adapter_config.json": config, "adapter_model.safetensors": weights})


def append_line(registry: RegistryProcess, name: str, event: str, version: str | None, reason: str) -> None:
    """Append an event to a pack's index, such as a yank."""
    path = hf_hub_download(name, RELEASES_FILE, endpoint=registry.endpoint, token=registry.token, force_download=True)
    data = Path(path).read_bytes()
    line = Event(schema=RELEASES_SCHEMA, event=event, version=version, reason=reason)
    put_files(registry, name, {RELEASES_FILE: append_event(data, line)})
