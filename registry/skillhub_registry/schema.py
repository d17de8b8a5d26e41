"""The database's schema, as scripts that lead from each version to the next.

They are SQL that SQLite understands; ``postgresql.py`` says what it changes in them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

SCHEMA = """
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL COLLATE NOCASE UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('user', 'organization')),
    created_at INTEGER NOT NULL
);
CREATE TABLE memberships (
    organization_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    PRIMARY KEY (organization_id, account_id)
) WITHOUT ROWID;
CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('read', 'write')),
    digest TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
);
-- AUTOINCREMENT: links signed for a deleted repository must never fit a later one.
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL UNIQUE,
    namespace_id INTEGER NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    last_modified INTEGER NOT NULL,
    downloads INTEGER NOT NULL DEFAULT 0,
    card TEXT NOT NULL DEFAULT '{}',
    library_name TEXT,
    pipeline_tag TEXT,
    UNIQUE (namespace_id, name)
);
CREATE TABLE repository_tags (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (repository_id, tag)
) WITHOUT ROWID;
CREATE INDEX repository_tags_by_tag ON repository_tags (tag);
CREATE TABLE former_names (
    full_name TEXT NOT NULL COLLATE NOCASE PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE refs (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    target TEXT NOT NULL,
    message TEXT,
    PRIMARY KEY (repository_id, name)
) WITHOUT ROWID;
CREATE TABLE commits (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    tree TEXT NOT NULL,
    parent TEXT,
    author TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    title TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (repository_id, id)
) WITHOUT ROWID;
-- Git trees, as git writes them; shared by all repositories, reachable through a commit only.
CREATE TABLE trees (
    id TEXT NOT NULL PRIMARY KEY,
    data BLOB NOT NULL
);
-- What stands behind a git blob id: the content itself, or with lfs = 1 the file that the pointer stands for.
CREATE TABLE files (
    id TEXT NOT NULL PRIMARY KEY,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    lfs INTEGER NOT NULL
) WITHOUT ROWID;
-- The large files that were sent to a repository. Knowing a digest is not enough to refer to a file.
CREATE TABLE uploads (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (repository_id, sha256)
) WITHOUT ROWID;
-- Xorbs by the hash that the sender gave them, kept apart by sender: nobody can replace another's.
CREATE TABLE xorbs (
    hash TEXT NOT NULL,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (hash, account_id)
) WITHOUT ROWID;
"""

PULL_REQUESTS = """
CREATE TABLE pull_requests (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    author_id INTEGER NOT NULL REFERENCES accounts (id),
    title TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('draft', 'open', 'closed', 'merged')),
    base TEXT NOT NULL,
    start TEXT NOT NULL,
    merge_commit TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, number)
) WITHOUT ROWID;
CREATE TABLE pull_request_events (
    id INTEGER PRIMARY KEY,
    repository_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    author_id INTEGER NOT NULL REFERENCES accounts (id),
    created_at INTEGER NOT NULL,
    data TEXT NOT NULL,
    FOREIGN KEY (repository_id, number) REFERENCES pull_requests (repository_id, number) ON DELETE CASCADE
);
CREATE INDEX pull_request_events_in_order ON pull_request_events (repository_id, number, id);
-- The second parent of a commit that merged a pull request.
ALTER TABLE commits ADD COLUMN merged TEXT;
-- Uploads belong to whoever sent them: 0 for the repository's members, else the account that proposes.
CREATE TABLE uploads_by_sender (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    sender INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (repository_id, sender, sha256)
) WITHOUT ROWID;
INSERT INTO uploads_by_sender SELECT repository_id, 0, sha256, size FROM uploads;
DROP TABLE uploads;
ALTER TABLE uploads_by_sender RENAME TO uploads;
"""

REPLICAS = """
-- Names are compared regardless of case. On SQLite their columns do that by themselves, elsewhere this does.
CREATE UNIQUE INDEX accounts_by_name ON accounts (lower(name));
CREATE UNIQUE INDEX repositories_by_name ON repositories (namespace_id, lower(name));
UPDATE former_names SET full_name = lower(full_name);
-- What several processes must agree on. One that has the data to itself keeps its key in a file.
CREATE TABLE secrets (
    name TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;
"""

ROLES_AND_GATES = """
-- Whoever was a member before there were roles keeps what it may do.
ALTER TABLE memberships ADD COLUMN role TEXT NOT NULL DEFAULT 'admin';
ALTER TABLE repositories ADD COLUMN creator_id INTEGER;
ALTER TABLE repositories ADD COLUMN gated TEXT NOT NULL DEFAULT '';
CREATE TABLE access_requests (
    public_id TEXT NOT NULL PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    status TEXT NOT NULL CHECK (status IN ('pending', 'accepted', 'rejected')),
    created_at INTEGER NOT NULL,
    UNIQUE (repository_id, account_id)
) WITHOUT ROWID;
"""

LARGE_FILES = """
-- The large files that commits of a repository name, by whichever commit named them first. What was there before such
-- things were noted is what the members sent.
CREATE TABLE large_files (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    path TEXT NOT NULL,
    ref TEXT NOT NULL,
    pushed_at INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    PRIMARY KEY (repository_id, sha256)
) WITHOUT ROWID;
INSERT INTO large_files
    SELECT u.repository_id, u.sha256, u.size, '', '', r.last_modified, 0
    FROM uploads u JOIN repositories r ON r.id = u.repository_id
    WHERE u.sender = 0 AND EXISTS (SELECT 1 FROM files f WHERE f.sha256 = u.sha256 AND f.lfs = 1);
"""

PACKS = """
-- What the index of releases on the main branch says, renewed with each commit there.
CREATE TABLE releases (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    version TEXT NOT NULL,
    published_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, version)
) WITHOUT ROWID;
CREATE TABLE requirements (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    version TEXT NOT NULL,
    pack TEXT NOT NULL,
    requirement TEXT NOT NULL,
    PRIMARY KEY (repository_id, place)
) WITHOUT ROWID;
CREATE INDEX requirements_by_pack ON requirements (pack);
"""

DISCUSSIONS = """
-- Discussions are numbered among the pull requests; they have no base and no start.
ALTER TABLE pull_requests ADD COLUMN is_pull_request INTEGER NOT NULL DEFAULT 1;
"""

TOKEN_LIMITS = """
ALTER TABLE tokens ADD COLUMN expires_at INTEGER;
-- A limited token is for what token_limits says and nothing else: for nothing at all once that is deleted.
ALTER TABLE tokens ADD COLUMN limited INTEGER NOT NULL DEFAULT 0;
CREATE TABLE token_limits (
    token_id INTEGER NOT NULL REFERENCES tokens (id) ON DELETE CASCADE,
    namespace_id INTEGER REFERENCES accounts (id) ON DELETE CASCADE,
    repository_id INTEGER REFERENCES repositories (id) ON DELETE CASCADE
);
CREATE INDEX token_limits_by_token ON token_limits (token_id);
"""

GARBAGE = """
-- What nothing referred to when it was marked: blobs by sha256, commits as repository:id. Whoever relies on a blob that is
-- there already takes its mark away first.
CREATE TABLE garbage (
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'commit')),
    key TEXT NOT NULL,
    marked_at INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
-- When a xorb was last sent or referred to; 0 before such things were noted.
ALTER TABLE xorbs ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
"""

AUDIT = """
-- Who changed what, by names, which outlive what they name.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    made_at INTEGER NOT NULL,
    account TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_by_target ON audit (lower(target), id);
"""

SIGN_IN = """
-- Who may sign in to the pages, in which browsers somebody has, and how often it was tried in vain.
CREATE TABLE passwords (
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    hash TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (account_id)
) WITHOUT ROWID;
CREATE TABLE sessions (
    digest TEXT NOT NULL PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_by_account ON sessions (account_id);
CREATE TABLE sign_in_tries (
    subject TEXT NOT NULL PRIMARY KEY,
    tries INTEGER NOT NULL,
    since INTEGER NOT NULL
) WITHOUT ROWID;
"""

MIRRORS = """
-- The address of the Hub that a repository is a mirror of, or nothing; namespaces that came with such a repository.
ALTER TABLE repositories ADD COLUMN upstream TEXT NOT NULL DEFAULT '';
ALTER TABLE accounts ADD COLUMN mirrored INTEGER NOT NULL DEFAULT 0;
-- When a file or folder of a mirrored repository, known by its path and git id, last changed according to the other Hub.
CREATE TABLE mirrored_changes (
    repository_id INTEGER NOT NULL REFERENCES repositories (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    id TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, path, id)
) WITHOUT ROWID;
"""

FAILURES = """
-- What was tried in vain is told among the changes, and only so much of it is kept; a token's use after its end, once a day.
ALTER TABLE audit ADD COLUMN failed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX audit_failures ON audit (id) WHERE failed = 1;
ALTER TABLE tokens ADD COLUMN refused_at INTEGER NOT NULL DEFAULT 0;
"""

MIGRATIONS: tuple[str, ...] = (
    SCHEMA,
    PULL_REQUESTS,
    REPLICAS,
    ROLES_AND_GATES,
    LARGE_FILES,
    PACKS,
    DISCUSSIONS,
    TOKEN_LIMITS,
    GARBAGE,
    AUDIT,
    SIGN_IN,
    MIRRORS,
    FAILURES,
)
"""Scripts that lead from version N to N + 1. Append only."""


def split_statements(script: str) -> Iterator[str]:
    """Yield the statements of a script."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
