"""Every limit on what a request may bring: it all comes from the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024

HEADERS: Final = 64 * 1024
"""Bytes of a request's first line and headers."""

JSON_BODY: Final = 4 * MIB
"""Bytes of an ordinary request body (JSON or form)."""

REGULAR_FILE: Final = 10_000_000
"""Bytes of a file that may travel inside a commit; larger ones go through LFS or Xet."""

COMMIT_LINE: Final = 16 * MIB
"""Bytes of one line of a commit: a regular file in base64, and its path."""

COMMIT_BODY: Final = 512 * MIB
"""Bytes of a whole commit."""

COMMIT_OPERATIONS: Final = 50_000
"""Lines of a commit."""

FILE: Final = 200 * 1000**3
"""Bytes of one file."""

XORB: Final = 80 * MIB
"""Bytes of one xorb; the client makes them of at most 64 MiB."""

XORB_CHUNKS: Final = 16_384
"""Chunks of one xorb; the client makes at most 8,192."""

CHUNK: Final = 2 * MIB
"""Bytes of one unpacked chunk; the client makes them of at most 128 KiB."""

SHARD: Final = 64 * MIB
"""Bytes of one shard."""

SHARD_FILES: Final = 10_000
"""Files that one shard describes."""

RELEASES: Final = 64 * MIB
"""Bytes of a pack's releases.jsonl; clients read no more either."""

REQUIREMENTS: Final = 10_000
"""Requirements of a pack's releases that are kept for asking who requires what, those of the latest ones first."""

CARD: Final = 1 * MIB
"""Bytes of a README.md that is read for its metadata."""

CARD_METADATA: Final = 64 * 1024
"""Bytes of the YAML block at its top."""

TENSOR_HEADER: Final = 32 * MIB
"""Bytes of the header of a safetensors file, or of the index of several, that are read here."""

SHARDS: Final = 1000
"""Files of one model whose headers are read."""

LFS_BATCH: Final = 1000
"""Objects of one LFS batch request."""

MULTIPART_PARTS: Final = 10_000
"""Parts of one multipart upload."""

PATHS_INFO: Final = 1000
"""Paths of one paths-info request."""

TITLE: Final = 200
"""Characters of a pull request's title."""

COMMENT: Final = 65_536
"""Characters of a comment on a pull request."""

DIFF: Final = 1 * MIB
"""Characters of a pull request's diff after which no more files are added to it, and bytes of a file in it."""

SHOWN_MANIFEST: Final = 16 * MIB
"""Bytes of a manifest that a page tells of."""

REMEMBERED_INDEX: Final = MIB // 4
"""Bytes of an index of releases that is kept in memory once it was read for a page."""

SHOWN_TEXT: Final = 256 * 1024
"""Bytes of a file, or of a card, that a page shows."""

SHOWN_SCORES: Final = 100
"""Scores of a variant, and example prompts of a pack, that a page lists."""

SHOWN_REQUIREMENTS: Final = 100
"""Requirements of a release that a page lists."""

SHOWN_CHANGES: Final = 500
"""Changed files of a commit that a page lists."""

UPSTREAM_ANSWER: Final = 64 * MIB
"""Bytes of one answer of the API of the Hub that is mirrored."""

UPSTREAM_PAGES: Final = 1000
"""Pages of one of its lists: enough for as many files as a commit may have, at 50 on each."""

MIRRORED_REGULAR: Final = 2000 * MIB
"""Bytes of all files of a mirrored commit that are fetched before it is shown."""

MIRRORED_FILES: Final = 16
"""Large files that are fetched from the mirrored Hub at a time."""

TREE_PAGE: Final = 1000
TREE_PAGE_EXPANDED: Final = 50
COMMITS_PAGE: Final = 50
PULL_REQUESTS_PAGE: Final = 50
ACCESS_REQUESTS_PAGE: Final = 100
MEMBERS_PAGE: Final = 500
LARGE_FILES_PAGE: Final = 1000
DEPENDENTS_PAGE: Final = 200
RELEASES_PAGE: Final = 1000
MODELS_PAGE: Final = 100
MODELS_PAGE_MAXIMUM: Final = 1000
CARDS_PAGE: Final = 20
"""Repositories on a page of results, for people."""


@dataclass(frozen=True)
class Quotas:
    """What operators may choose: the bytes of one file, and of all large files of a repository together; 0 for any number."""

    file: int = FILE
    repository: int = 0
