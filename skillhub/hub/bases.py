"""Base models on a registry: their files' digests without downloading them, and their snapshot."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from skillhub import settings
from skillhub.errors import NotFoundError, UnsafeContentError
from skillhub.hub.failures import hub_failures, offline_error
from skillhub.hub.registries import Registry, client

WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PATTERNS = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "preprocessor_config.json", "processor_config.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
)


def base_file_digests(registry: Registry, repository: str, *, revision: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of a base model's files of weights, as the registry's tree lists them: file name → hex digest.

    Nothing is downloaded. The weights are ``model.safetensors``, else the shards, else every safetensors file at the
    top. A registry that keeps weights outside LFS has no such digests: the result is empty.

    Raises:
        NotFoundError: there is no such repository or revision.
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    digests = _tree(registry, repository, revision)
    if WEIGHTS in digests:
        chosen = [WEIGHTS]
    else:
        tensors = [path for path in digests if path.endswith(".safetensors") and "/" not in path]
        chosen = [path for path in tensors if path.startswith("model-")] or tensors
    found = {path: digests[path] for path in chosen}
    return {} if None in found.values() else {path: digest for path, digest in found.items() if digest}


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
        SkillhubError: as :func:`skillhub.hub.failures.hub_failures`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    local_only = offline or settings.offline()
    if not local_only:
        _check_has_safetensors(list(_tree(registry, repository, revision)), repository)
    with hub_failures(registry, repository), disable_progress_bars():
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                endpoint=registry.endpoint,
                token=registry.token or False,
                library_name="skillhub",
                allow_patterns=list(_PATTERNS),
                local_files_only=local_only,
            )
        )


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
