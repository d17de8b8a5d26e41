"""The package manager for SkillPacks: compressed fine-tunes that graft onto their base model.

    import skillhub

    skillhub.install(["acme/math-pack"], base="./SmolLM2-135M-Instruct")
    model = skillhub.graft(model, ["acme/math-pack"])
    skillhub.ungraft(model)

Importing this package is cheap: each function is loaded on first use (PEP 562), so the command line answers before
torch would have been imported.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from skillhub.errors import (
    AuthError,
    DiskError,
    EnvironmentLockedError,
    IntegrityError,
    LockStaleError,
    MissingExtraError,
    NetworkError,
    NewerSchemaError,
    NotFoundError,
    OfflineError,
    ResolutionError,
    ResolverLimitError,
    SkillhubError,
    TrustError,
    UnsafeContentError,
    UsageError,
    WrongBaseError,
    missing_extra,
)

if TYPE_CHECKING:
    from skillhub.adapterpacker import pack_adapter
    from skillhub.adapters import Adapter, open_adapter
    from skillhub.authorfile import AuthorFile
    from skillhub.compose.fusion import fuse
    from skillhub.compose.grafts import disable, enable, graft, grafted, grafted_packs, set_weights, ungraft
    from skillhub.environments import InstalledPack
    from skillhub.exporter import export_adapters
    from skillhub.installer import install, uninstall
    from skillhub.integrity import verify
    from skillhub.packer import pack
    from skillhub.packs import Pack, open_pack
    from skillhub.publisher import Publication, publish
    from skillhub.releases import Release
    from skillhub.repacker import pack_grafted

__version__ = "0.1.0.dev0"

_MODULE_OF = {
    "Adapter": "adapters",
    "AuthorFile": "authorfile",
    "InstalledPack": "environments",
    "Pack": "packs",
    "Publication": "publisher",
    "Release": "releases",
    "disable": "compose.grafts",
    "enable": "compose.grafts",
    "export_adapters": "exporter",
    "fuse": "compose.fusion",
    "graft": "compose.grafts",
    "grafted": "compose.grafts",
    "grafted_packs": "compose.grafts",
    "install": "installer",
    "open_adapter": "adapters",
    "open_pack": "packs",
    "pack": "packer",
    "pack_adapter": "adapterpacker",
    "pack_grafted": "repacker",
    "publish": "publisher",
    "set_weights": "compose.grafts",
    "ungraft": "compose.grafts",
    "uninstall": "installer",
    "verify": "integrity",
}

__all__ = [
    "Adapter",
    "AuthError",
    "AuthorFile",
    "DiskError",
    "EnvironmentLockedError",
    "InstalledPack",
    "IntegrityError",
    "LockStaleError",
    "MissingExtraError",
    "NetworkError",
    "NewerSchemaError",
    "NotFoundError",
    "OfflineError",
    "Pack",
    "Publication",
    "Release",
    "ResolutionError",
    "ResolverLimitError",
    "SkillhubError",
    "TrustError",
    "UnsafeContentError",
    "UsageError",
    "WrongBaseError",
    "disable",
    "enable",
    "export_adapters",
    "fuse",
    "graft",
    "grafted",
    "grafted_packs",
    "install",
    "open_adapter",
    "open_pack",
    "pack",
    "pack_adapter",
    "pack_grafted",
    "publish",
    "set_weights",
    "ungraft",
    "uninstall",
    "verify",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'skillhub' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"skillhub.{_MODULE_OF[name]}"), name)
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
