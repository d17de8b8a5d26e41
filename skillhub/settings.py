"""Where skillhub keeps things and which registry it talks to, read from environment variables.

SKILLHUB_CACHE     the store and everything else that can be fetched or computed again
SKILLHUB_HOME      the per-user environments
SKILLHUB_STATE     what was seen before (first-seen digests)
SKILLHUB_CONFIG    the folder of config.toml and policy.toml
SKILLHUB_SIGNING_KEY  the file of the key that releases are signed with
HF_ENDPOINT        the registry, as for huggingface_hub
HF_HUB_OFFLINE     1: never use the network (TRANSFORMERS_OFFLINE and SKILLHUB_OFFLINE as well)
"""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_ENDPOINT = "https://huggingface.co"


def cache_folder() -> Path:
    """Return the folder of the store and of remembered fingerprints (``SKILLHUB_CACHE``)."""
    if chosen := os.environ.get("SKILLHUB_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("skillhub", appauthor=False))


def home_folder() -> Path:
    """Return the folder of the per-user environments, one per base (``SKILLHUB_HOME``)."""
    if chosen := os.environ.get("SKILLHUB_HOME"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("skillhub", appauthor=False))


def state_folder() -> Path:
    """Return the folder of first-seen digests (``SKILLHUB_STATE``)."""
    if chosen := os.environ.get("SKILLHUB_STATE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_state_dir("skillhub", appauthor=False))


def configuration_folder() -> Path:
    """Return the folder of the user's own settings (``SKILLHUB_CONFIG``)."""
    if chosen := os.environ.get("SKILLHUB_CONFIG"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("skillhub", appauthor=False))


def signing_key_file() -> Path | None:
    """Return the file of the key for signing releases where one is named (``SKILLHUB_SIGNING_KEY``)."""
    chosen = os.environ.get("SKILLHUB_SIGNING_KEY")
    return Path(chosen).expanduser() if chosen else None


def endpoint() -> str:
    """Return the address of the default registry, without a trailing slash (``HF_ENDPOINT``)."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def offline() -> bool:
    """Say whether the network must not be used, by this package's variable or by huggingface_hub's two."""
    return any(
        os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SKILLHUB_OFFLINE")
    )
