"""Git objects against git itself."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillhub_registry import git
from tests.support.registry_process import RegistryProcess

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..", ".git")), min_size=1, max_size=3).map("/".join)


def run_git(repository: Path, *arguments: str, given: bytes = b"") -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout.decode().strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("git")
    run_git(folder, "init", "--quiet")
    return folder


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(PATHS, st.binary(max_size=20), max_size=6))
def test_trees_have_the_ids_that_git_gives(repository: Path, files: dict[str, bytes]) -> None:
    files = {path: data for path, data in files.items() if not any(other.startswith(path + "/") for other in files)}
    blobs = {path: git.object_id("blob", data) for path, data in files.items()}
    run_git(repository, "read-tree", "--empty")
    for path, data in files.items():
        assert run_git(repository, "hash-object", "-w", "--stdin", given=data) == blobs[path]
    lines = b"".join(f"100644 {blobs[path]}\t{path}\0".encode() for path in files)
    run_git(repository, "update-index", "-z", "--index-info", given=lines)
    root, trees = git.build_trees(blobs)
    assert run_git(repository, "write-tree") == root
    for tree, data in trees.items():
        assert git.encode_tree(git.decode_tree(data)) == data
        assert git.object_id("tree", data) == tree


def test_file_and_folder_of_one_name() -> None:
    with pytest.raises(ValueError, match="a/b"):
        git.build_trees({"a/b": "0" * 40, "a/b/c": "1" * 40})


def test_empty_tree(repository: Path) -> None:
    assert git.build_trees({})[0] == git.EMPTY_TREE_ID == run_git(repository, "mktree")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
def test_commits_have_the_ids_that_git_gives(repository: Path, text: str) -> None:
    tree = run_git(repository, "mktree")
    parent = None
    for second in (1_700_000_000, 1_700_000_001):
        person = ["-c", "user.name=ann", "-c", "user.email=ann@users.noreply.local", "-c", "i18n.commitEncoding=utf-8"]
        date = f"{second} +0000"
        command = [
            "env",
            f"GIT_AUTHOR_DATE={date}",
            f"GIT_COMMITTER_DATE={date}",
            "git",
            "-C",
            str(repository),
            *person,
        ]
        command += ["commit-tree", tree, *(["-p", parent] if parent else [])]
        made = (
            subprocess.run(command, input=f"{text}\n".encode(), capture_output=True, check=True).stdout.decode().strip()
        )
        data = git.encode_commit(git.CommitObject(tree, parent, "ann", second, text))
        assert git.object_id("commit", data) == made
        parent = made


def test_a_history_is_what_git_says(registry: RegistryProcess, tmp_path: Path) -> None:
    """A repository's objects, handed to git, are sound, and git reads from them what the registry says."""
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    name = f"{registry.user}/history"
    api.create_repo(name)
    steps = [
        ("One", [("a.txt", b"1"), ("dir/b.txt", b"2"), ("dir/sub/c.txt", b"3"), ("dir.txt", b"4")]),
        ("Two\n\nwith a body", [("dir/b.txt", b"5")]),
        ("Three", [("a.txt", None), ("dir/sub/", None)]),
        ("Fünf", [("zero.txt", b""), ("a.txt", b"1")]),
    ]
    for message, changes in steps:
        operations = [
            CommitOperationDelete(path) if data is None else CommitOperationAdd(path, data) for path, data in changes
        ]
        api.create_commit(name, operations, commit_message=message.split("\n")[0], commit_description=message[5:][:11])
    head = api.model_info(name).sha
    assert head is not None

    folder = tmp_path / "mirror"
    folder.mkdir()
    run_git(folder, "init", "--quiet")
    copy_objects(registry.data, name, folder)
    run_git(folder, "update-ref", "refs/heads/main", head)
    run_git(folder, "fsck", "--strict", "--full")

    log = run_git(folder, "log", "--format=%H %s", head).splitlines()
    assert log == [f"{commit.commit_id} {commit.title}" for commit in api.list_repo_commits(name)]
    assert [line.split(" ", 1)[1] for line in log] == ["Fünf", "Three", "Two", "One", "initial commit"]
    for line in log:
        commit = line.split()[0]
        listed = [
            (entry.path, entry.blob_id if hasattr(entry, "blob_id") else entry.tree_id)
            for entry in api.list_repo_tree(name, revision=commit, recursive=True)
        ]
        lines = run_git(folder, "ls-tree", "-r", "-t", "--format=%(path) %(objectname)", commit).splitlines()
        assert [f"{path} {oid}" for path, oid in listed] == lines
        for entry in api.list_repo_tree(name, revision=commit, recursive=True, expand=True):
            assert entry.last_commit is not None
            assert entry.last_commit.oid == run_git(folder, "log", "-1", "--format=%H", commit, "--", entry.path)


def test_a_merge_is_what_git_says(registry: RegistryProcess, tmp_path: Path) -> None:
    api = HfApi(endpoint=registry.endpoint, token=registry.token)
    name = api.create_repo(f"{registry.user}/merged-history").repo_id
    proposal = api.create_commit(name, [CommitOperationAdd("b.txt", b"2")], commit_message="Propose", create_pr=True)
    own = api.create_commit(name, [CommitOperationAdd("a.txt", b"1")], commit_message="Go on").oid
    assert proposal.pr_num is not None
    api.merge_pull_request(name, proposal.pr_num)
    head = api.model_info(name).sha
    assert head is not None

    folder = tmp_path / "mirror"
    folder.mkdir()
    run_git(folder, "init", "--quiet")
    copy_objects(registry.data, name, folder)
    run_git(folder, "update-ref", "refs/heads/main", head)
    run_git(folder, "fsck", "--strict", "--full")
    assert run_git(folder, "log", "-1", "--format=%P %s", head) == f"{own} {proposal.oid} Propose (#{proposal.pr_num})"
    assert run_git(folder, "ls-tree", "--name-only", head).split() == [".gitattributes", "a.txt", "b.txt"]
    first_parents = run_git(folder, "log", "--first-parent", "--format=%H", head).split()
    assert [commit.commit_id for commit in api.list_repo_commits(name)] == first_parents


def copy_objects(data: Path, name: str, folder: Path) -> None:
    """Write a repository's objects into a git repository, and check that git gives them the same ids."""
    connection = sqlite3.connect(data / "registry.sqlite3")
    for blob, sha256, lfs in connection.execute("SELECT id, sha256, lfs FROM files").fetchall():
        if not lfs:
            content = (data / "blobs" / sha256[:2] / sha256[2:]).read_bytes()
            assert run_git(folder, "hash-object", "-w", "--stdin", given=content) == blob
    commits = connection.execute(
        "SELECT c.id, c.tree, c.parent, c.author, c.created_at, c.title, c.message, c.merged FROM commits c "
        "JOIN repositories r ON r.id = c.repository_id WHERE r.name = ? ORDER BY c.created_at",
        (name.split("/")[1],),
    ).fetchall()
    trees = dict(connection.execute("SELECT id, data FROM trees").fetchall())
    connection.close()
    pending = [commit[1] for commit in commits]
    while pending:
        tree = pending.pop()
        assert run_git(folder, "hash-object", "-t", "tree", "-w", "--stdin", "--literally", given=trees[tree]) == tree
        pending += [entry.id for entry in git.decode_tree(trees[tree]) if entry.is_folder]
    for commit, tree, parent, author, created_at, title, message, merged in commits:
        text = f"{title}\n\n{message}" if message else title
        data_of_commit = git.encode_commit(git.CommitObject(tree, parent, author, created_at, text, merged))
        assert run_git(folder, "hash-object", "-t", "commit", "-w", "--stdin", given=data_of_commit) == commit


def test_pointers() -> None:
    pointer = git.lfs_pointer("ab" * 32, 12345)
    assert pointer.decode().splitlines()[1:] == ["oid sha256:" + "ab" * 32, "size 12345"]
    assert git.is_lfs_pointer(pointer)
    assert git.is_lfs_pointer(pointer.rstrip())
    assert not git.is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1\n")
