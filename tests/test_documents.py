"""Canonical JSON, schema numbers, and errors that name the path of a field."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillhub.documents import canonical_json, check_schema, decode_json, field_error, parse_toml
from skillhub.errors import NewerSchemaError

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@given(VALUES)
def test_canonical_json_says_the_same_and_says_it_in_one_line(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    assert canonical_json(json.loads(data)) == data
    assert decode_json(data, object) == value


def test_canonical_json_sorts_keys_at_every_depth() -> None:
    assert canonical_json({"b": {"z": 1, "y": [{"d": 1, "c": 2}]}, "a": "é"}) == (
        '{"a":"é","b":{"y":[{"c":2,"d":1}],"z":1}}\n'.encode()
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_no_word_for_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"a": [number]})


class Inner(msgspec.Struct):
    size: int


class Outer(msgspec.Struct):
    schema: int
    items: list[Inner] = []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"schema":0,"items":[{"size":1},{"size":"x"}]}', "$.items[1].size: Expected `int`, got `str`"),
        (b'{"items":[]}', "$: Object missing required field `schema`"),
        (b"", "$: Input data was truncated"),
        (b'{"schema":\xff}', "$: JSON is malformed: invalid character (byte 10)"),
        (b'{"schema":0,"\xff":1}', "$: A text is not UTF-8"),
        (b'{"a":"\xed\xa0\x80","schema":0}', "$: A text is not UTF-8"),
        (b'{"schema":0,"other":' + b"[" * 100_000, "$: It is nested too deeply"),
        (b'{"schema":' + b"9" * 5_000 + b"}", "$.schema: Integer value out of range"),
        (b'{"schema":1e999}', "$.schema: Number out of range"),
        (b'{"schema":NaN}', "$: JSON is malformed: invalid character (byte 10)"),
    ],
)
def test_what_cannot_be_read_is_one_kind_of_error_with_a_path(data: bytes, message: str) -> None:
    kind = Outer if b"other" not in data and b"\xff" not in data and b"\xed" not in data else object
    with pytest.raises(msgspec.MsgspecError) as caught:
        decode_json(data, kind)
    assert field_error(caught.value) == message


def test_a_check_of_our_own_continues_the_path_of_its_object() -> None:
    def error(text: str) -> str:
        return field_error(msgspec.ValidationError(text))

    assert error(".path: 'x' is bad - at `$.files[3]`") == "$.files[3].path: 'x' is bad"
    assert error(".name: 'a - at `b` c' is bad") == "$.name: 'a - at `b` c' is bad"
    assert error(".path: is bad.") == "$.path: is bad"


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        decode_json(data, object)
    except msgspec.MsgspecError as error:
        assert field_error(error).startswith("$")


def test_another_schema_is_refused_before_anything_else() -> None:
    check_schema(b'{"schema":0,"what":"ever"}', 0, "file")
    with pytest.raises(NewerSchemaError, match=r"file has schema 3; .* reads schema 0") as caught:
        check_schema(b'{"what":[],"schema":3}', 0, "file")
    assert caught.value.exit_code == 15 and "--upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "data", [b"{}", b'{"schema":-1}', b'{"schema":null}', b'{"schema":true}', b'{"schema":"0"}', b"[]"]
)
def test_a_schema_that_is_no_number_is_malformed(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        check_schema(data, 0, "file")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = 1\nb = \n", "line 2"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"a = \xff", "It is not UTF-8 text"),
        (b"a = " + b"9" * 5_000, "A number is too long"),
        (b"a = " + b"[" * 50_000, "nested too deeply"),
    ],
    ids=range(5),
)
def test_toml_that_cannot_be_read_is_one_kind_of_error(data: bytes, message: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError, match=message):
        parse_toml(data)


def test_toml_is_read_with_or_without_a_byte_order_mark() -> None:
    assert parse_toml(b"\xef\xbb\xbfa = [1, 'x']\r\n") == parse_toml(b"a = [1, 'x']\n") == {"a": [1, "x"]}


def test_other_tools_can_write_the_canonical_form() -> None:
    value = {"b": [1, 2.5, 1e-05, True, None], "a": {"é": "∑\n"}}
    command = "import json,sys; v=json.load(sys.stdin); print(json.dumps(v,sort_keys=True,ensure_ascii=False,separators=(',',':')))"
    executable = shutil.which("python3") or sys.executable
    done = subprocess.run(
        [executable, "-X", "utf8", "-c", command], input=json.dumps(value).encode(), capture_output=True, check=True
    )
    assert canonical_json(value) == done.stdout


CONCURRENT = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import msgspec
from skillhub.documents import convert_value, decode_json

sys.setswitchinterval(1e-6)
THREADS = 8

def new_type(number):
    inner = msgspec.defstruct(f"Inner{number}", [(f"field{place}", int, 0) for place in range(20)])
    fields = [(f"field{place}", dict[str, inner], msgspec.field(default_factory=dict)) for place in range(30)]
    return msgspec.defstruct(f"Outer{number}", fields)

with ThreadPoolExecutor(THREADS) as pool:
    for number in range(200):
        kind, together = new_type(number), threading.Barrier(THREADS)

        def read(thread):
            together.wait()
            raw = b'{"field1": {"a": {"field1": 2}}}'
            found = decode_json(raw, kind) if thread % 2 else convert_value(decode_json(raw, dict), kind)
            return found.field1["a"].field1

        assert list(pool.map(read, range(THREADS))) == [2] * THREADS
"""


def test_threads_that_meet_a_type_at_once_do_not_crash() -> None:
    done = subprocess.run([sys.executable, "-c", CONCURRENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
