"""The one boundary to huggingface_hub: everything that goes over the network passes through here.

Nothing else in skillhub imports huggingface_hub, and this package imports it inside functions only, so a command that
needs no network never loads it. Every call names its registry's endpoint and passes the registry's token or False:
huggingface_hub would send the ambient token to any endpoint. Every failure of the transport leaves as one of our own
errors (see ``failures``).
"""

from __future__ import annotations

from skillhub.hub.accounts import Account, fetch_account, log_in
from skillhub.hub.adapters import RemoteAdapter, find_adapter
from skillhub.hub.bases import base_file_digests, fetch_base
from skillhub.hub.downloads import RemoteFile, download_file, read_file, read_releases
from skillhub.hub.folders import is_vendored, vendored_registries
from skillhub.hub.identities import release_times, repository_id
from skillhub.hub.probing import Answer, probe
from skillhub.hub.registries import HUB, Registry, default_registry
from skillhub.hub.repositories import (
    CommitResult,
    MetadataRefusedError,
    commit,
    create_repository,
    create_tag,
    repository_head,
    require_token,
)
from skillhub.hub.searching import PACK_TAG, FoundPack, find_namesakes, find_packs
from skillhub.hub.tokens import (
    exposed_token_files,
    registries_of_token,
    remove_active_token,
    remove_token,
    store_token,
    stored_token,
    token_variable,
)

__all__ = [
    "HUB",
    "PACK_TAG",
    "Account",
    "Answer",
    "CommitResult",
    "FoundPack",
    "MetadataRefusedError",
    "Registry",
    "RemoteAdapter",
    "RemoteFile",
    "base_file_digests",
    "commit",
    "create_repository",
    "create_tag",
    "default_registry",
    "download_file",
    "exposed_token_files",
    "fetch_account",
    "fetch_base",
    "find_adapter",
    "find_namesakes",
    "find_packs",
    "is_vendored",
    "log_in",
    "probe",
    "read_file",
    "read_releases",
    "registries_of_token",
    "release_times",
    "remove_active_token",
    "remove_token",
    "repository_head",
    "repository_id",
    "require_token",
    "store_token",
    "stored_token",
    "token_variable",
    "vendored_registries",
]
