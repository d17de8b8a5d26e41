"""Documents as all our formats write and read them: canonical JSON, TOML, a schema number, errors with a path."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from skillhub.errors import NewerSchemaError

Result = TypeVar("Result")

_REGEX = re.compile("Expected `str` matching regex '(.*)'", re.DOTALL)


def canonical_json(value: Any) -> bytes:
    """Return JSON with one form only: sorted keys, no spaces, UTF-8, a final newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


class _Schema(Struct):
    schema: Annotated[int, Meta(ge=0)]


_TYPES = threading.RLock()
"""msgspec finds out what it needs of a type when it first meets it, and crashes where two threads do so at once."""


def decode_json(data: bytes, kind: type[Result]) -> Result:
    """Return JSON as an object of type ``kind``.

    Raises:
        msgspec.MsgspecError: it is not UTF-8, not JSON, nested too deeply, or does not fit the type.
    """
    try:
        with _TYPES:
            return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError("A text is not UTF-8") from error
    except RecursionError as error:
        raise msgspec.DecodeError("It is nested too deeply") from error


def convert_value(value: object, kind: type[Result]) -> Result:
    """Return what JSON was decoded to as an object of type ``kind``.

    Raises:
        msgspec.ValidationError: it does not fit the type.
    """
    with _TYPES:
        return msgspec.convert(value, kind)


def parse_toml(data: bytes) -> dict[str, Any]:
    """Return a TOML document; a byte order mark is skipped.

    Raises:
        tomllib.TOMLDecodeError: it is not UTF-8, not TOML (the message has the line), or nested or long beyond measure.
    """
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except tomllib.TOMLDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise tomllib.TOMLDecodeError("It is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise tomllib.TOMLDecodeError("A number is too long, or values are nested too deeply") from error


def check_schema(data: bytes, supported: int, where: str) -> None:
    """Refuse JSON whose ``schema`` is not ``supported``.

    Raises:
        NewerSchemaError: it is another number.
        msgspec.MsgspecError: the JSON cannot be read or has no such field.
    """
    found = decode_json(data, _Schema).schema
    if found != supported:
        raise NewerSchemaError(
            f"{where} has schema {found}; this version of skillhub reads schema {supported}.",
            hint="Upgrade skillhub: pip install --upgrade skillhub-packs.",
            schema=found,
        )


def field_error(error: msgspec.MsgspecError) -> str:
    """Return msgspec's message with the field's path first: ``$.version: Expected `str`, got `int```.

    A check of our own, which msgspec knows the object of, begins with the rest of the path: ``.version: …``.
    """
    text, found, path = str(error).rpartition(" - at `$")
    text, path = (text, path.rstrip("`")) if found else (str(error), "")
    text = _REGEX.sub(_plain_words, text.removesuffix("."))
    return f"${path}{'' if text.startswith('.') else ': '}{text}"


def _plain_words(found: re.Match[str]) -> str:
    """Return what is wrong with a text, for those who do not read regular expressions."""
    if "\\x1f" in found[1]:
        return "It contains control characters (or a line break where one line is wanted)"
    if "[0-9a-f]{64}" in found[1]:
        return "It is not a digest of 64 hexadecimal digits" + (" after skb1:" if "skb1:" in found[1] else "")
    return found[0]
