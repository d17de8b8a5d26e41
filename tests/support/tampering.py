"""What no registry of ours takes in, put there behind its back: clients must not trust any registry."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import CommitOperationAdd, HfApi

from skillhub_registry.repositories import find_repository
from skillhub_registry.revisions import DEFAULT_REF, move_ref
from tests.support.registry_process import RegistryProcess


def put_unchecked(registry: RegistryProcess, token: str | None, name: str, files: Mapping[str, bytes]) -> None:
    """Let a repository's main branch have files, whether or not they make a whole release."""
    api = HfApi(endpoint=registry.endpoint, token=token)
    api.create_branch(name, branch="unchecked")
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    commit = api.create_commit(name, operations, commit_message="Change", revision="unchecked").oid
    with registry.open_database() as database, database.write() as connection:
        repository = find_repository(connection, *name.split("/"))
        assert repository is not None
        move_ref(connection, repository.id, DEFAULT_REF, commit)
    api.delete_branch(name, branch="unchecked")
