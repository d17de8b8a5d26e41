"""A pack folder: what is truncated, altered, unlisted, missing or a link is found, and nothing outside is read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from skillhub.errors import IntegrityError, NewerSchemaError, NotFoundError, UnsafeContentError, WrongBaseError
from skillhub.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, variant_folder
from skillhub.packs import (
    MAX_HEADER_BYTES,
    Pack,
    check_content,
    check_file,
    describe_base,
    file_entry,
    open_pack,
    short_fingerprint,
    verify_pack,
    write_manifest,
)
from tests.support.manifests import BASE, OTHER_BASE, manifest_fields
from tests.support.packs import payload

DELTA = f"{variant_folder(BASE)}/delta-00001.safetensors"
RECORD = f"{variant_folder(BASE)}/base.json.zst"
OTHER_DELTA = f"{variant_folder(OTHER_BASE)}/delta-00001.safetensors"


def build_pack(folder: Path) -> Pack:
    """Write a pack with two variants, of two files and of one."""
    contents = {DELTA: b"delta" * 1_000, RECORD: b"", OTHER_DELTA: b"other"}
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    manifest = msgspec.convert(manifest_fields(), Manifest)
    first, second = (
        msgspec.structs.replace(
            variant,
            router=None,
            files=[file_entry(folder, path) for path in contents if path.startswith(variant.folder)],
        )
        for variant in manifest.variants
    )
    write_manifest(folder, msgspec.structs.replace(manifest, variants=[first, second]))
    return open_pack(folder, owner="acme")


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    (tmp_path / "outside.txt").write_bytes(b"delta" * 1_000)
    return build_pack(tmp_path / "pack")


def findings(pack: Pack, fingerprint: str | None = None) -> list[str]:
    """Return the messages of what is wrong, with paths relative to the pack."""
    errors = verify_pack(pack, fingerprint=fingerprint)
    assert all(error.exit_code == 6 and error.hint and error.details["path"] for error in errors)
    return [error.message.replace(f"{pack.folder}/", "") for error in errors]


def test_a_number_that_json_cannot_hold_is_an_integrity_error(tmp_path: Path) -> None:
    manifest = msgspec.convert(manifest_fields(), Manifest)
    codec = msgspec.structs.replace(manifest.variants[0].codec, bits_per_weight=float("inf"))
    variant = msgspec.structs.replace(manifest.variants[0], codec=codec)
    with pytest.raises(IntegrityError, match="infinite"):
        write_manifest(tmp_path, msgspec.structs.replace(manifest, variants=[variant]))
    assert list(tmp_path.iterdir()) == []


def test_a_whole_pack_has_no_findings_and_every_byte_is_read(pack: Pack) -> None:
    seen: list[int] = []
    assert verify_pack(pack, progress=seen.append) == []
    assert sum(seen) == 5_005
    assert str(pack) == "acme/math-pack 1.2.0rc1" and str(pack.name) == "acme/math-pack"
    assert pack.digest == hashlib.sha256((pack.folder / "skillpack.json").read_bytes()).hexdigest()
    assert str(open_pack(pack.folder)) == "math-pack 1.2.0rc1"


def test_entries_are_of_the_file_on_disk(pack: Pack) -> None:
    entry = file_entry(pack.folder, DELTA)
    assert entry == FileEntry(path=DELTA, size=5_000, sha256=hashlib.sha256(b"delta" * 1_000).hexdigest())
    assert pack.path_of(entry) == pack.folder / DELTA


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../../outside.txt")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 4_999), "has 4999 bytes where the manifest says 5000"),
    "emptied": (lambda path: os.truncate(path, 0), "has 0 bytes where the manifest says 5000"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "has 5001 bytes where"),
    "altered": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"A"), "was altered: its digest is "),
    "missing": (Path.unlink, "is missing"),
    "a link": (replace_by_link, "is a symbolic link, not a file of the pack"),
    "a folder": (replace_by_folder, "is missing"),
    "a pipe": (replace_by_pipe, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_the_one_finding(damage: str, pack: Pack) -> None:
    change, message = DAMAGES[damage]
    change(pack.folder / DELTA)
    (found,) = findings(pack)
    assert found.startswith(f"{DELTA} {message}")
    assert findings(pack, OTHER_BASE)[0].startswith(RECORD)  # of a variant that is not installed: unlisted there


def test_every_byte_of_a_small_file_counts(pack: Pack) -> None:
    path = pack.folder / OTHER_DELTA
    entry = file_entry(pack.folder, OTHER_DELTA)
    for position in range(5):
        for bit in range(8):
            data = bytearray(b"other")
            data[position] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(IntegrityError, match="altered"):
                check_file(path, entry)


def test_all_findings_are_reported_at_once(pack: Pack) -> None:
    (pack.folder / DELTA).unlink()
    (pack.folder / OTHER_DELTA).write_bytes(b"OTHER")
    (pack.folder / "variants" / "extra.bin").touch()
    assert {message.split()[0] for message in findings(pack)} == {DELTA, OTHER_DELTA, "variants/extra.bin"}


@pytest.mark.parametrize(
    "path", ["extra", "variants/extra.bin", f"{DELTA}.part", ".hidden", f"{variant_folder(BASE)}/SKILLPACK.JSON"]
)
def test_an_unlisted_file_is_found(path: str, pack: Pack) -> None:
    (pack.folder / path).touch()
    assert findings(pack) == [f"{path} is not listed in the manifest."]


@pytest.mark.parametrize("target", ["../outside.txt", "..", "nowhere"])
def test_an_unlisted_link_is_found_and_not_followed(target: str, pack: Pack) -> None:
    (pack.folder / "link").symlink_to(target)
    assert findings(pack) == ["link is not listed in the manifest."]


def test_the_receipt_of_an_installed_pack_is_no_finding(pack: Pack) -> None:
    (pack.folder / "receipt.json").touch()
    assert findings(pack) == []
    (pack.folder / "variants" / "receipt.json").touch()
    assert findings(pack) == ["variants/receipt.json is not listed in the manifest."]


def test_an_installed_pack_has_the_files_of_one_variant(pack: Pack) -> None:
    shutil.rmtree(pack.folder / variant_folder(OTHER_BASE))
    assert findings(pack, BASE) == []
    assert findings(pack) == [f"{OTHER_DELTA} is missing."]
    with pytest.raises(WrongBaseError):
        verify_pack(pack, fingerprint="skb1:" + "0" * 64)


def test_a_folder_that_leads_elsewhere_is_unsafe(pack: Pack, tmp_path: Path) -> None:
    folder = pack.folder / variant_folder(BASE)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeContentError, match=r"leaves .* through a symbolic link") as caught:
        verify_pack(pack)
    assert caught.value.exit_code == 12


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/passwd", "a/../../outside.txt", "..\\outside.txt", "C:\\x"])
def test_no_path_reaches_outside_the_pack(path: str, pack: Pack) -> None:
    with pytest.raises(UnsafeContentError):
        file_entry(pack.folder, path)
    with pytest.raises(ValueError, match="does not stay inside"):
        FileEntry(path=path, size=0, sha256="0" * 64)
    data = (pack.folder / "skillpack.json").read_bytes().replace(DELTA.encode(), path.replace("\\", "\\\\").encode())
    (pack.folder / "skillpack.json").write_bytes(data)
    with pytest.raises(UnsafeContentError, match=r"\$\.variants\[0\]\.files\[0\]\.path: .* does not stay inside"):
        open_pack(pack.folder)


def test_a_folder_without_a_manifest_is_not_a_pack(tmp_path: Path) -> None:
    for folder, said in (
        (tmp_path, r"is not a pack: it has no skillpack\.json"),
        (tmp_path / "no", "There is no folder"),
    ):
        with pytest.raises(NotFoundError, match=said) as caught:
            open_pack(folder)
        assert caught.value.exit_code == 4 and caught.value.hint
    (tmp_path / "skillpack.json").mkdir()
    with pytest.raises(NotFoundError):
        open_pack(tmp_path)


def test_a_bad_manifest_is_named_by_its_file(pack: Pack) -> None:
    path = pack.folder / "skillpack.json"
    data = path.read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], data.replace(b"math", b"meth", 1) + b" ", b""):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=str(path)):
            open_pack(pack.folder)
    path.write_bytes(b'{"schema":9}')
    with pytest.raises(NewerSchemaError, match=str(path)):
        open_pack(pack.folder)


def test_a_folder_may_be_given_as_text(pack: Pack) -> None:
    assert open_pack(str(pack.folder)) == open_pack(pack.folder)


def test_a_manifest_of_many_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "skillpack.json"
    path.touch()
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(IntegrityError, match=f"is {MAX_MANIFEST_BYTES + 1} bytes long, which no manifest is"):
        open_pack(tmp_path)


def test_a_manifest_that_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    manifest = Manifest(schema=0, name="a", version="1.0", license="two\nlines")
    with pytest.raises(
        IntegrityError, match=r"the new skillpack\.json is not a valid manifest: \$\.license: It contains"
    ) as caught:
        write_manifest(tmp_path, manifest)
    assert "publisher" not in caught.value.hint and "Correct" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_variant_is_found_by_its_base(pack: Pack) -> None:
    assert pack.variant_for(BASE) is pack.manifest.variants[0]
    with pytest.raises(WrongBaseError) as caught:
        pack.variant_for("skb1:" + "9" * 64)
    assert "skb1:999999999999" in caught.value.message and "acme/small-base" in caught.value.message
    assert caught.value.exit_code == 5 and caught.value.details["fits"] == [BASE, OTHER_BASE]


def test_the_only_variant_is_the_only_one(pack: Pack) -> None:
    with pytest.raises(WrongBaseError, match="several bases"):
        pack.only_variant()
    first, _ = pack.manifest.variants
    assert Pack(pack.folder, msgspec.structs.replace(pack.manifest, variants=[first])).only_variant() is first
    with pytest.raises(WrongBaseError):
        Pack(pack.folder, msgspec.structs.replace(pack.manifest, variants=[])).only_variant()


def test_bases_are_described_for_people(pack: Pack) -> None:
    first, second = pack.manifest.variants
    assert short_fingerprint(BASE) == "skb1:0123456789ab"
    assert describe_base(first) == "acme/small-base (skb1:0123456789ab)"
    bare = msgspec.structs.replace(second, base=msgspec.structs.replace(second.base, repo=None))
    assert describe_base(bare) == "skb1:fedcba987654"


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 100, UnsafeContentError, "claims 16777217 bytes"),
        (b"\x80\x04\x95 a pickle", UnsafeContentError, "claims"),
        (payload("x", 100)[:-1], IntegrityError, "truncated"),
        (b"", IntegrityError, "truncated"),
        (payload("x", 100) + b"more", IntegrityError, "belong to none"),
        ((1 << 16).to_bytes(8, "little") + b"[" * (1 << 16), IntegrityError, "not JSON"),
    ],
)
def test_content_that_is_no_safetensors_file_is_refused(
    data: bytes, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    path = tmp_path / hashlib.sha256(data).hexdigest()  # as a store calls it
    path.write_bytes(data)
    with pytest.raises(kind, match=words) as caught:
        check_content(path, name=DELTA)
    assert str(caught.value).startswith(DELTA) and path.name not in str(caught.value)


def test_content_that_is_a_safetensors_file_or_of_another_kind_passes(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(payload("x", 100))
    check_content(path, name=DELTA)
    path.write_bytes(b"anything")
    check_content(path, name=RECORD)
