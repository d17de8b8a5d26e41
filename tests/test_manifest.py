"""The manifest: one canonical form, strict reading, and errors that name the path of the bad field."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.documents import canonical_json
from skillhub.errors import IntegrityError, NewerSchemaError, SkillhubError, UnsafeContentError
from skillhub.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest, variant_folder
from tests.support.manifests import BASE, MANIFESTS, OTHER_BASE, manifest_fields

GOLDEN = Path(__file__).parent / "golden" / "manifest_0.json"
CALIBRATED = GOLDEN.with_name("manifest_0_calibrated.json")
"""The same, of packs that say whether they were calibrated; those before did not."""
GOLDEN_DIGEST = "826658efd1e3465328a90e6956c057b8bbd445d4c32992ac755eb80efb532ec8"
CALIBRATED_DIGEST = "545a4867c672eadb5f81cddf1161b440a89889bb14a5f9e6dfb41978e44c6601"


def parse(fields: object) -> Manifest:
    return parse_manifest(canonical_json(fields))


def put(fields: Any, path: str, value: object) -> Any:
    """Return a copy with ``value`` at a path such as ``variants.0.files.2.size``; ``...`` removes the field."""
    changed = copy.deepcopy(fields)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("|")]
    place = changed
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


def calibrated_fields() -> Any:
    """The fields of the golden manifest with what packs say since they may be calibrated."""
    fields = json.loads(json.dumps(manifest_fields()))  # its variants share what is in them
    fields = put(fields, "variants|0|codec|calibrated", value=True)
    return put(fields, "variants|1|codec|calibrated", value=False)


@pytest.mark.parametrize(
    ("path", "digest", "fields"),
    [(GOLDEN, GOLDEN_DIGEST, manifest_fields()), (CALIBRATED, CALIBRATED_DIGEST, calibrated_fields())],
)
def test_the_golden_manifest_is_read_and_written_byte_for_byte(path: Path, digest: str, fields: Any) -> None:
    data = path.read_bytes()
    manifest = parse_manifest(data)
    assert manifest.to_bytes() == data
    assert manifest.digest == hashlib.sha256(data).hexdigest() == digest
    assert data == canonical_json(fields)


def test_manifests_say_whether_packs_were_calibrated_where_that_is_known() -> None:
    ways = [[one.codec.way for one in parse_manifest(path.read_bytes()).variants] for path in (GOLDEN, CALIBRATED)]
    assert ways == [["near", "near"], ["near, calibrated", "near, not calibrated"]]


def test_the_golden_manifest_has_every_field() -> None:
    def check(fields: Any, value: Any) -> None:
        if isinstance(value, msgspec.Struct):
            assert set(fields) == set(value.__struct_fields__)
            for name in value.__struct_fields__:
                check(fields[name], getattr(value, name))
        elif isinstance(value, list):
            for one, other in zip(fields, value, strict=True):
                check(one, other)

    fields = json.loads(CALIBRATED.read_bytes())
    check(fields, parse_manifest(CALIBRATED.read_bytes()))
    first = fields["variants"][0]
    assert None not in (*fields.values(), *first.values(), *first["base"].values(), *first["router"].values())


def test_what_the_golden_manifest_says() -> None:
    manifest = parse_manifest(GOLDEN.read_bytes())
    first, second = manifest.variants
    assert str(manifest.full_name("acme")) == "acme/math-pack"
    assert first.folder == variant_folder(BASE) == "variants/0123456789ab"
    assert first.size == 4_242 + 9_400 + 2_400 and second.size == 0
    assert manifest.variant_for(OTHER_BASE) is second
    assert manifest.variant_for("skb1:" + "0" * 64) is None


@given(MANIFESTS)
@settings(max_examples=60)
def test_every_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    again = parse_manifest(data)
    assert again == manifest and again.to_bytes() == data
    assert again.digest == hashlib.sha256(data).hexdigest()


@given(MANIFESTS, st.data())
@settings(max_examples=60)
def test_a_changed_byte_is_refused_or_another_manifest(manifest: Manifest, data: st.DataObject) -> None:
    original = manifest.to_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    try:
        other = parse_manifest(bytes(changed))
    except SkillhubError as error:
        assert error.exit_code in (6, 12, 15)
        return
    assert other != manifest and other.digest != manifest.digest


FILE = "variants|0|files|2"
TENSORS = "variants|0|codec|tensors|lm_head.weight"
BAD_FIELDS: list[tuple[str, object, str]] = [
    ("name", "a/b", "$.name: 'a/b' is not a pack's bare name"),
    ("name", "../a", "$.name: "),
    ("name", 3, "$.name: Expected `str`, got `int`"),
    ("name", ..., "$: Object missing required field `name`"),
    ("version", "1.0.0-rc1", "$.version: The version '1.0.0-rc1' is not in its normalized public form"),
    ("version", "1.0+cpu", "$.version: "),
    ("version", "9" * 5_000, "$.version: "),
    ("summary", "\x1b[2J", "$.summary: "),
    ("summary", "x" * 10_001, "$.summary: "),
    ("license", "mit\n", "$.license: "),
    ("requires", ["acme/a>=1", "b>=1"], "$.requires[1]: 'b>=1' lacks an owner: write OWNER/b>=1"),
    ("requires", ["../a"], "$.requires[0]: "),
    ("requires", "acme/a", "$.requires: Expected `array`, got `str`"),
    ("conflicts", ["acme/a>>1"], "$.conflicts[0]: The versions in 'acme/a>>1' cannot be read"),
    ("skills|tags", [1], "$.skills.tags[0]: Expected `str`, got `int`"),
    ("skills|tags", ["a\u202eb"], "$.skills.tags[0]: "),
    ("skills|prompts", ["ok", "\x00"], "$.skills.prompts[1]: "),
    ("provenance", {"tool": None}, "$.provenance[...]: Expected `str`, got `null`"),
    ("signer|public_key", ..., "$.signer: Object missing required field `public_key`"),
    ("variants", {}, "$.variants: Expected `array`, got `object`"),
    ("variants|0|base|fingerprint", "skb1:xyz", "$.variants[0].base.fingerprint: "),
    ("variants|1|base|fingerprint", BASE + "\n", "$.variants[1].base.fingerprint: "),
    ("variants|1|base|fingerprint", BASE, "$.variants: two are for the same base"),
    ("variants|0|base|parameters", -1, "$.variants[0].base.parameters: Expected `int` >= 0"),
    ("variants|0|base|tokenizer", "A" * 64, "$.variants[0].base.tokenizer: "),
    ("variants|0|base|files", [{"x": "y"}], "$.variants[0].base.files[0][...]: "),
    ("variants|0|codec|bits_per_weight", "1", "$.variants[0].codec.bits_per_weight: Expected `float`, got `str`"),
    (f"{TENSORS}|change", "patch", "$.variants[0].codec.tensors[...].change: "),
    (f"{TENSORS}|shape", [3, -1], "$.variants[0].codec.tensors[...].shape[1]: Expected `int` >= 0"),
    (f"{TENSORS}|digest", "5" * 63, "$.variants[0].codec.tensors[...].digest: "),
    (f"{FILE}|size", "9", "$.variants[0].files[2].size: Expected `int`, got `str`"),
    (f"{FILE}|size", -1, "$.variants[0].files[2].size: Expected `int` >= 0"),
    (f"{FILE}|size", True, "$.variants[0].files[2].size: Expected `int`, got `bool`"),
    (f"{FILE}|sha256", "8" * 64 + "\n", "$.variants[0].files[2].sha256: "),
    (f"{FILE}|path", "../../x", "$.variants[0].files[2].path: The path '../../x' does not stay inside"),
    (f"{FILE}|path", "/etc/passwd", "$.variants[0].files[2].path: "),
    (f"{FILE}|path", "variants\\0123456789ab\\x", "$.variants[0].files[2].path: "),
    (f"{FILE}|path", "variants/0123456789ab/../x", "$.variants[0].files[2].path: "),
    (f"{FILE}|path", "skillpack.json", "$.variants[0].files[2].path: 'skillpack.json' is not in the variant's folder"),
    (f"{FILE}|path", "receipt.json", "$.variants[0].files[2].path: "),
    (f"{FILE}|path", "variants/0123456789abc/x", "$.variants[0].files[2].path: "),
    (f"{FILE}|path", "variants/0123456789ab", "$.variants[0].files[2].path: "),
    (f"{FILE}|path", "variants/0123456789ab/delta-00001.safetensors", "$.variants"),
    (f"{FILE}|mode", 0o755, "$.variants[0].files[2]: Object contains unknown field `mode`"),
    ("variants|0|router|path", "variants/0123456789ab/other", "$.variants[0].router.path: "),
    ("variants|0|router|threshold", None, "$.variants[0].router.threshold: Expected `float`, got `null`"),
    ("variants|0|evaluation|1|rows", 0.5, "$.variants[0].evaluation[1].rows: Expected `int`, got `float`"),
    ("variants|0|evaluation|0|metric", "a\tb", "$.variants[0].evaluation[0].metric: "),
    ("schema", None, "$.schema: Expected `int`, got `null`"),
    ("schema", -1, "$.schema: Expected `int` >= 0"),
    ("extra", 1, "$: Object contains unknown field `extra`"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named_by_its_path(path: str, value: object, message: str) -> None:
    with pytest.raises((IntegrityError, UnsafeContentError)) as caught:
        parse(put(manifest_fields(), path, value))
    assert caught.value.message.startswith(f"skillpack.json is not a valid manifest: {message}")
    assert caught.value.hint
    leaves = value in ("../../x", "/etc/passwd", "variants\\0123456789ab\\x", "variants/0123456789ab/../x")
    assert isinstance(caught.value, UnsafeContentError) == leaves


@pytest.mark.parametrize(
    "name",
    ["delta.bin", "pickle.pt", "run.py", "lib.so", "README.md", "base.json", "x.safetensors.py", "xbase.json.zst"],
)
def test_a_variant_holds_no_other_kinds_of_files_than_the_known(name: str) -> None:
    path = f"variants/0123456789ab/{name}"
    with pytest.raises(UnsafeContentError, match="neither a safetensors file nor") as caught:
        parse(put(manifest_fields(), f"{FILE}|path", path))
    assert "$.variants[0].files[2].path: " in caught.value.message


def test_two_files_must_be_two_on_every_file_system() -> None:
    fields = manifest_fields()
    folder = variant_folder(BASE)
    for first, second in [
        ("A", "a"),
        ("é", "e\u0301"),
        ("a", "a.safetensors/b"),
        ("A.safetensors/b", "a"),
        ("straße", "STRASSE"),
    ]:
        paths = [f"{folder}/{name}.safetensors" for name in (first, second)]
        files = [{"path": path, "size": 0, "sha256": "0" * 64} for path in paths]
        changed = put(put(fields, "variants|0|files", files), "variants|0|router", None)
        with pytest.raises(IntegrityError, match=r"\$\.variants: "):
            parse(changed)


@pytest.mark.parametrize("schema", [1, 2, 2**40])
def test_another_schema_is_refused_before_its_fields_are_looked_at(schema: int) -> None:
    with pytest.raises(NewerSchemaError, match=f"schema {schema}") as caught:
        parse({"schema": schema, "nothing": "we know"})
    assert caught.value.exit_code == 15 and "--upgrade" in caught.value.hint


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    data = canonical_json(manifest_fields()).replace(
        b'"bits_per_weight":0.375', b'"bits_per_weight":' + number.encode()
    )
    with pytest.raises(IntegrityError):
        parse_manifest(data)


def test_a_manifest_with_nan_is_not_written() -> None:
    fields = put(manifest_fields(), "variants|0|codec|bits_per_weight", float("nan"))
    with pytest.raises(ValueError, match="Out of range float"):
        msgspec.convert(fields, Manifest).to_bytes()


CANONICAL = canonical_json(manifest_fields())


@pytest.mark.parametrize(
    "data",
    [
        CANONICAL[:-1],
        CANONICAL + b"\n",
        b" " + CANONICAL,
        CANONICAL.replace(b'"name":', b'"name": '),
        CANONICAL.replace(b'"schema":0', b'"schema":0,"schema":0'),
        CANONICAL.replace(b'"name":"math-pack"', b'"name":"other","name":"math-pack"'),
        CANONICAL.replace("和".encode(), b"\\u548c"),
        CANONICAL.replace(b"0.375", b"0.3750"),
        CANONICAL.replace(b'"base":2.5', b'"base":25e-1'),
        json.dumps(manifest_fields(), ensure_ascii=False).encode(),
        json.dumps(manifest_fields(), indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n",
    ],
    ids=range(11),
)
def test_the_same_in_another_form_is_refused(data: bytes) -> None:
    assert data != CANONICAL and json.loads(data) == manifest_fields()
    with pytest.raises(IntegrityError, match="canonical form"):
        parse_manifest(data)


def test_a_field_left_out_is_another_form_too() -> None:
    with pytest.raises(IntegrityError, match="canonical form"):
        parse(put(manifest_fields(), "license", ...))


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}", b"[]", b"null", b"\xef\xbb\xbf{}", b'{"schema":0', b"\xff\xfe", b"PK\x03\x04"]
)
def test_what_is_no_manifest_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="somewhere is not a valid manifest") as caught:
        parse_manifest(data, where="somewhere")
    assert caught.value.hint


def test_a_bomb_is_refused_by_its_length_or_depth() -> None:
    with pytest.raises(IntegrityError, match="which no manifest is"):
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(IntegrityError, match="nested too deeply"):
        parse_manifest(b'{"provenance":' + b'{"a":' * 200_000)
