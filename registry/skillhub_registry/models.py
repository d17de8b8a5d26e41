"""What is known of a model, member by member: cheap ones from its row, others from its files when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from skillhub_registry import limits
from skillhub_registry.blobs import BlobStore
from skillhub_registry.database import Connection
from skillhub_registry.errors import HubError
from skillhub_registry.largefiles import is_deleted, sum_sizes
from skillhub_registry.repositories import Repository, count_tagged, read_tags
from skillhub_registry.revisions import Commit
from skillhub_registry.tensorheaders import INDEX_FILE, SINGLE_FILE, count_parameters, read_index
from skillhub_registry.trees import Entry, File, describe_entries, find_entry, find_files, walk_tree

_RELATIONS = ("adapter", "finetune", "merge", "quantized")


@dataclass(frozen=True)
class Model:
    """A repository at a commit, as whoever may read ``readable`` accounts' private repositories sees it."""

    connection: Connection
    store: BlobStore
    repository: Repository
    commit: Commit
    readable: Collection[int]

    @cached_property
    def entries(self) -> list[Entry]:
        """Every file."""
        found = (item for item in walk_tree(self.connection, self.commit.tree) if not item[1].is_folder)
        return describe_entries(self.connection, found)

    def find_file(self, path: str) -> File | None:
        """Return the file at a path, or None where there is none that can be read."""
        entry = find_entry(self.connection, self.commit.tree, path)
        if entry is None or entry.is_folder:
            return None
        file = find_files(self.connection, [entry.id])[entry.id]
        return None if is_deleted(self.connection, self.repository.id, file) else file


def _tags(model: Model) -> list[str]:
    return read_tags(model.connection, model.repository.id)


def _used_storage(model: Model) -> int:
    """Return the bytes of large files, of whatever commit, and of the other files at this one."""
    regular = sum(entry.file.size for entry in model.entries if entry.file and not entry.file.lfs)
    return regular + sum_sizes(model.connection, model.repository.id)


def _safetensors(model: Model) -> dict[str, Any] | None:
    """Return the numbers of a model in one file or several, by type; None for what is neither, or cannot be read."""
    single, index = model.find_file(SINGLE_FILE), model.find_file(INDEX_FILE)
    try:
        if single is not None:
            files = {SINGLE_FILE: single}
        elif index is not None:
            shards = set(read_index(model.store, index, INDEX_FILE)["weight_map"].values())
            files = {shard: file for shard in sorted(shards)[: limits.SHARDS] if (file := model.find_file(shard))}
        else:
            return None
        parameters = count_parameters(model.store, files)
    except HubError:
        return None
    return {"parameters": parameters, "total": sum(parameters.values())}


def _config(model: Model) -> dict[str, Any] | None:
    """Return the members of ``config.json`` that say what the model is."""
    file = model.find_file("config.json")
    if file is None or file.size > limits.CARD:
        return None
    try:
        config = json.loads(model.store.read(file.sha256))
    except (ValueError, RecursionError):
        return None
    kept = ("architectures", "model_type", "quantization_config")
    return {name: config[name] for name in kept if name in config} if isinstance(config, dict) else None


def _base_models(model: Model) -> dict[str, Any] | None:
    bases = model.repository.card.get("base_model")
    names = [name for name in (bases if isinstance(bases, list) else [bases]) if isinstance(name, str) and name]
    if not names:
        return None
    return {"relation": model.repository.card.get("base_model_relation"), "models": [{"id": name} for name in names]}


def _children(model: Model) -> int:
    return count_tagged(model.connection, f"base_model:{model.repository.full_name}", model.readable)


FROM_FILES: dict[str, Callable[[Model], Any]] = {
    "baseModels": _base_models,
    "childrenModelCount": _children,
    "config": _config,
    "model-index": lambda model: model.repository.card.get("model-index"),
    "safetensors": _safetensors,
    "tags": _tags,
    "usedStorage": _used_storage,
    "widgetData": lambda model: model.repository.card.get("widget"),
}
"""Members that take a look at files or at other repositories; None is left out of an answer."""

ABSENT = frozenset(
    ["evalResults", "gguf", "inference", "inferenceProviderMapping", "mask_token", "resourceGroup", "transformersInfo"]
)
"""Members that the client may ask for and that no model here has: nothing computes them or runs models."""
