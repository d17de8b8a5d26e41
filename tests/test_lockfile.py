"""The lockfile: the same lock is the same bytes, and what is wrong in one is named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.errors import IntegrityError, NewerSchemaError
from skillhub.lockfile import (
    Lock,
    LockedBase,
    LockedPack,
    inputs_digest,
    parse_lock,
    read_lock,
    relative_folder,
    write_lock,
)
from skillhub.manifest import FileEntry
from skillhub.names import parse_pack_name
from tests.support.packs import BASE, OTHER_BASE

DIGEST = "ab" * 32

LOCK = Lock(
    inputs=inputs_digest(["acme/math-pack>=1"]),
    bases=(LockedBase(fingerprint=BASE, repo="acme/base"),),
    packs=(
        LockedPack(
            name="acme/math-pack",
            version="1.0.0",
            manifest=DIGEST,
            registry="hub",
            repository="acme/math-pack",
            commit="c" * 40,
            files=[FileEntry(path="variants/0123/delta-00001.safetensors", size=3, sha256=DIGEST)],
        ),
    ),
)

TEXT = f"""# Written by skillhub; edit skillhub.toml instead.
lock_version = 0
inputs = "{LOCK.inputs}"

[[base]]
fingerprint = "{BASE}"
repo = "acme/base"

[[pack]]
name = "acme/math-pack"
version = "1.0.0"
manifest = "{DIGEST}"
kind = "pack"
registry = "hub"
repository = "acme/math-pack"
commit = "{"c" * 40}"

[[pack.files]]
path = "variants/0123/delta-00001.safetensors"
size = 3
sha256 = "{DIGEST}"
"""


def test_the_file_is_what_people_can_read_and_compare() -> None:
    assert LOCK.to_bytes().decode() == TEXT
    assert parse_lock(TEXT.encode()) == LOCK


names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
entries = st.builds(
    FileEntry, path=st.builds("variants/{}/{}".format, names, names), size=st.integers(0), sha256=digests
)
packs = st.builds(
    LockedPack,
    name=st.builds("{}/{}".format, names, names),
    version=st.sampled_from(["1.0", "2.0rc1", "1.0.post1"]),
    manifest=digests,
    registry=names,
    repository=names,
    id=st.none() | names,
    commit=st.none() | digests,
    signer=st.none() | names,
    dependencies=st.lists(names, max_size=3, unique=True).map(sorted),
    files=st.lists(entries, max_size=3, unique_by=lambda entry: entry.path).map(
        lambda some: sorted(some, key=lambda entry: entry.path)
    ),
)
bases = st.sampled_from([(), (LockedBase(fingerprint=BASE),), (LockedBase(fingerprint=OTHER_BASE, revision="main"),)])


@given(st.lists(packs, max_size=4, unique_by=lambda pack: pack.name), bases, digests, st.randoms())
def test_any_lock_comes_back_and_its_order_does_not_matter(
    some: list[LockedPack], base: tuple[LockedBase, ...], inputs: str, random: object
) -> None:
    some.sort(key=lambda pack: pack.name)
    lock = Lock(inputs, base, tuple(some))
    data = lock.to_bytes()
    assert parse_lock(data) == lock
    random.shuffle(some)  # type: ignore[attr-defined]
    assert Lock(inputs, base, tuple(some)).to_bytes() == data


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('version = "1.0.0"', "version = 1", r"\$\.pack\[0\]\.version"),
        ('version = "1.0.0"', 'version = "one"', "'one' is not a version"),
        ('name = "acme/math-pack"', 'name = "../x/y"', "is not a pack name"),
        ("size = 3", "size = -3", r"\$\.pack\[0\]\.files\[0\]\.size"),
        ("variants/0123/", "../../", "does not stay inside"),
        ('kind = "pack"', 'kind = "wheel"', r"\$\.pack\[0\]\.kind"),
        ('inputs = "', 'surprise = "', r"lockfile"),
        ("[[base]]", "[[base", "cannot be read"),
        ("lock_version = 0", "", "lock_version"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(IntegrityError, match=words):
        parse_lock(TEXT.replace(old, new, 1).encode())


def test_a_pack_is_locked_once() -> None:
    twice = Lock(LOCK.inputs, (), LOCK.packs * 2)
    with pytest.raises(IntegrityError, match="twice"):
        parse_lock(twice.to_bytes())


def test_another_version_is_refused_whatever_else_it_holds() -> None:
    with pytest.raises(NewerSchemaError) as caught:
        parse_lock(b'lock_version = 1\nnews = "all"\n')
    assert caught.value.exit_code == 15


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        parse_lock(b"\xff\xfe")


def test_reading_and_writing(tmp_path: Path) -> None:
    path = tmp_path / "skillhub.lock"
    assert read_lock(path) is None
    write_lock(path, LOCK)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_lock(path, LOCK)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert read_lock(path) == LOCK


def test_find_is_case_insensitive() -> None:
    assert LOCK.find(parse_pack_name("Acme/Math-Pack")) == LOCK.packs[0]
    assert LOCK.find(parse_pack_name("math-pack")) == LOCK.packs[0]
    assert LOCK.find(parse_pack_name("other/math-pack")) is None


def test_every_requirement_changes_the_digest_and_their_order_does_not() -> None:
    assert len({inputs_digest([]), inputs_digest(["a/b"]), inputs_digest(["a/b>=1"])}) == 3
    assert inputs_digest(["a/b", "c/d"]) == inputs_digest(["c/d", "a/b"])
    nothing = b'{"constraints":[],"newest":null,"overrides":[],"pre_releases":false,"requirements":["a/b"]}\n'
    assert inputs_digest(["a/b"]) == hashlib.sha256(nothing).hexdigest()


def test_folders_are_written_relative_to_the_environment(tmp_path: Path) -> None:
    assert relative_folder(tmp_path / "packs" / "mine", tmp_path / "project") == "../packs/mine"
