"""Base models on a registry: their files' digests without downloading them, and their snapshot."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from skillhub import settings
from skillhub.checkpointfiles import INDEX_FILE, WEIGHTS_FILE, choose_weights, parse_index, read_index
from skillhub.errors import NotFoundError, UnsafeContentError, UsageError
from skillhub.files import disk_errors
from skillhub.hub.downloads import read_file
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry, client

MAX_INDEX_BYTES = 64 << 20

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BESIDE_WEIGHTS = (
    *(INDEX_FILE, "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "preprocessor_config.json", "processor_config.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)
_POOLING = "1_Pooling/config.json"


def base_file_digests(registry: Registry, repository: str, *, revision: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of a base model's files of weights, as the registry's tree lists them: file name → hex digest.

    No weights are downloaded; which files they are is decided as for a folder (``checkpointfiles.choose_weights``).
    A registry that keeps weights outside LFS has no such digests, and several files without an index are no
    checkpoint: the result is then empty.

    Raises:
        NotFoundError: there is no such repository or revision.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    digests = _tree(registry, repository, revision)
    chosen = _weights(registry, repository, revision, digests)
    if len(chosen) > 1 and INDEX_FILE not in digests:
        return {}
    found = {path: digests.get(path) for path in chosen}
    return {} if None in found.values() else {path: digest for path, digest in found.items() if digest}


def _weights(registry: Registry, repository: str, revision: str | None, names: Collection[str]) -> list[str]:
    """Return the files of weights among the names at the top of a repository; of a sharded base, its index is read."""

    def read_shards() -> list[str]:
        read = read_file(registry, repository, INDEX_FILE, revision=revision or "main", limit=MAX_INDEX_BYTES)
        return list(parse_index(read.data if read else b"", f"{INDEX_FILE} of {repository}").values())

    return choose_weights(names, read_shards)


def _tree(registry: Registry, repository: str, revision: str | None) -> dict[str, str | None]:
    """Return path → LFS digest (None for a file outside LFS) of the files at the top of a repository."""
    if settings.offline():
        raise offline_error(f"The list of files of {repository}")
    with hub_failures(registry, repository):
        entries = client(registry).list_repo_tree(repository, revision=revision)
        return {entry.path: entry.lfs.sha256 if entry.lfs else None for entry in entries if hasattr(entry, "lfs")}


def fetch_base(registry: Registry, repository: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """Return the folder of a base model's snapshot in huggingface_hub's own cache, downloading what is missing.

    Args:
        registry: where to download from.
        repository: ``owner/name``.
        revision: branch, tag or commit; None means main.
        offline: use what is cached only.

    Raises:
        UnsafeContentError: the weights are pickles only.
        NotFoundError: there is no such repository or revision, or it has no weights.
        OfflineError: it is not cached and the network may not be used.
        UsageError: it holds several safetensors files and no index.
        DiskError: the disk is full or the cache may not be written.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    if offline or settings.offline():
        folder = _snapshot(registry, repository, revision, local_files_only=True, allow_patterns=["config.json"])
        names = [path.name for path in folder.iterdir()]
        weights = [escape(name) for name in choose_weights(names, lambda: read_index(folder).values())]
        # asked again for all that must be there: an interrupted download is no base
        wanted = [*weights, WEIGHTS_FILE, *_BESIDE_WEIGHTS]
        only = {"allow_patterns": wanted, "ignore_patterns": ["*/*"]}
        return _snapshot(registry, repository, revision, local_files_only=True, **only)
    return _snapshot(registry, repository, revision, allow_patterns=_wanted(registry, repository, revision))


def _snapshot(registry: Registry, repository: str, revision: str | None, **options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils.tqdm import disable_progress_bars

    with disk_errors(Path(HF_HUB_CACHE)), hub_failures(registry, repository), disable_progress_bars():
        found = snapshot_download(
            repository,
            revision=revision,
            endpoint=registry.endpoint,
            token=registry.token or False,
            library_name="skillhub",
            **options,
        )
    return Path(str(found))


def _wanted(registry: Registry, repository: str, revision: str | None) -> list[str]:
    """Return what to download, as patterns that match one file each: the client's ``*`` matches ``/`` as well."""
    names = list(_tree(registry, repository, revision))
    _check_has_safetensors(names, repository)
    weights = _weights(registry, repository, revision, names)
    if len(weights) > 1 and INDEX_FILE not in names:
        raise UsageError(
            f"{repository} holds {len(weights)} safetensors files and no {INDEX_FILE}.",
            hint="Name a repository whose model was saved with transformers.",
        )
    beside = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _BESIDE_WEIGHTS)]
    return [escape(name) for name in (*weights, *beside, _POOLING)]


def _check_has_safetensors(paths: list[str], repository: str) -> None:
    if any(path.endswith(".safetensors") for path in paths):
        return
    if any(PurePosixPath(path).suffix in _PICKLES for path in paths):
        raise UnsafeContentError(
            f"{repository} has its weights only as pickles, which can run code when they are read.",
            hint="Load it once in a place you trust and save it with save_pretrained(…), which writes safetensors; "
            "then name that folder as the base.",
        )
    raise NotFoundError(f"{repository} holds no safetensors weights.", hint="Name a model repository.")
