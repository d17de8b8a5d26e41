"""Tokens of registries other than ``HF_ENDPOINT``, in the file of named tokens that huggingface_hub keeps.

huggingface_hub knows one token that it sends, the *active* one, in a file of its own; it belongs to ``HF_ENDPOINT``. The
named tokens beside it are sent to nobody until one of them is made the active one. So a registry's token lies there under
the registry's address: ``hf auth list`` shows it, and there is no second file of secrets.
"""

from __future__ import annotations

import configparser
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from skillhub.errors import AuthError, UsageError
from skillhub.files import disk_errors, staged_file
from skillhub.locks import locked
from skillhub.redaction import hide

_PREFIX = "skillhub "
_TOKEN = "hf_token"
_VARIABLES = ("HF_OIDC_RESOURCE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PORTS = {"http": 80, "https": 443}


def token_name(endpoint: str) -> str:
    """Return what the saved token of a registry is called: ``skillhub https://hub.corp.example``.

    One registry has one name, however its address is written: without user and password, without its scheme's own port
    and a trailing slash, its host in small letters. ``http`` and ``https`` are two: what was given for an encrypted
    connection is not sent over an open one.

    Raises:
        UsageError: it is no address.
    """
    try:
        parts = urlsplit(endpoint)
        number = parts.port
    except ValueError as error:
        raise UsageError(
            f"{endpoint!r} is no address: {error}.", hint="Write it like https://hub.example.com."
        ) from error
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    port = f":{number}" if number not in (None, _PORTS.get(scheme)) else ""
    return f"{_PREFIX}{scheme}://{host}{port}{parts.path.rstrip('/')}"


def stored_token(endpoint: str) -> str | None:
    """Return the token that was saved for a registry other than ``HF_ENDPOINT``; None when there is none.

    Raises:
        AuthError: the file of saved tokens is damaged.
        DiskError: it may not be read.
    """
    path = _tokens_path()
    saved = _read(path)
    name = token_name(endpoint)
    token = saved.get(name, _TOKEN, fallback="").strip() if saved.has_section(name) else ""
    hide(token)
    return token or None


def token_variable() -> str | None:
    """Return the environment variable that decides the token for ``HF_ENDPOINT``, before any saved one; None without."""
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def store_token(endpoint: str, token: str) -> Path:
    """Save the token of a registry other than ``HF_ENDPOINT``, in place of an earlier one; returns the file.

    Raises:
        AuthError: the file of saved tokens is damaged.
        DiskError: it may not be written.
    """
    hide(token)
    with _changed_tokens() as saved:
        name = token_name(endpoint)
        saved.remove_section(name)
        saved.add_section(name)
        saved.set(name, _TOKEN, token)
    return _tokens_path()


def remove_token(endpoint: str) -> bool:
    """Remove the saved token of a registry; says whether there was one.

    Raises:
        AuthError: the file of saved tokens is damaged.
        DiskError: it may not be written.
    """
    if stored_token(endpoint) is None:
        return False
    with _changed_tokens() as saved:
        return saved.remove_section(token_name(endpoint))


def remove_active_token() -> bool:
    """Remove the token that huggingface_hub sends to ``HF_ENDPOINT``, and its name; says whether there was one.

    Other named tokens stay, those of other registries among them. (huggingface_hub's own ``logout`` removes them all, or
    one by its name, and needs git.)

    Raises:
        AuthError: the file of saved tokens is damaged.
        DiskError: a file may not be removed or written.
    """
    from huggingface_hub import constants

    path = Path(constants.HF_TOKEN_PATH)
    with disk_errors(path):
        if not path.is_file():
            return False
        active = path.read_text(encoding="utf-8", errors="replace").strip()
        if _tokens_path().exists():
            with _changed_tokens() as saved:
                for name in saved.sections():
                    if not name.startswith(_PREFIX) and saved.get(name, _TOKEN, fallback="").strip() == active:
                        saved.remove_section(name)
        path.unlink(missing_ok=True)
    return True


def registries_of_token(token: str, *, but: str) -> list[str]:
    """Return the addresses of the registries that a token was saved for, other than ``but``.

    Raises:
        AuthError: the file of saved tokens is damaged.
        DiskError: it may not be read.
    """
    saved, own = _read(_tokens_path()), token_name(but)
    names = [name for name in saved.sections() if name.startswith(_PREFIX) and name != own]
    return [name.removeprefix(_PREFIX) for name in names if saved.get(name, _TOKEN, fallback="").strip() == token]


def exposed_token_files() -> list[Path]:
    """Return the files of saved tokens that others on this machine may read."""
    from huggingface_hub import constants

    paths = [Path(constants.HF_TOKEN_PATH), _tokens_path()]
    return [path for path in paths if os.name == "posix" and path.is_file() and path.stat().st_mode & 0o077]


def _tokens_path() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_STORED_TOKENS_PATH)


def _read(path: Path) -> configparser.ConfigParser:
    saved = configparser.ConfigParser(interpolation=None)  # a % in a token is a %
    try:
        with disk_errors(path):
            text = path.read_text(encoding="utf-8")
        saved.read_string(text)
    except FileNotFoundError:
        pass
    except (configparser.Error, UnicodeDecodeError) as error:
        raise AuthError(
            f"The saved tokens in {path} cannot be read: the file is damaged.",
            hint="Remove that file, then log in again.",
        ) from error
    return saved


@contextmanager
def _changed_tokens() -> Iterator[configparser.ConfigParser]:
    """Yield the saved tokens to be changed, and write them when the block ends well; others wait meanwhile."""
    path = _tokens_path()
    with locked(path.with_name(path.name + ".lock"), timeout_seconds=30):  # the lock that huggingface_hub takes, too
        saved = _read(path)
        yield saved
        written = io.StringIO()
        saved.write(written)
        with staged_file(path) as staged:
            staged.chmod(0o600)
            staged.write_text(written.getvalue(), encoding="utf-8")
