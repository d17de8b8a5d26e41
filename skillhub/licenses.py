"""Licences: what the Hub calls them, and whether a pack's goes with its base's.

A pack is made from its base, so what the base's licence asks of changed versions, it asks of the pack. The table below
sorts licences by that alone. It is no lawyer: it says what people overlook, and nothing about licences it does not know.
"""

from __future__ import annotations

from skillhub.frontmatter import read_front_matter, split_readme

BASE_LICENSE = "base_license"
"""Key of a manifest's provenance: the licence that the base's own folder stated when the pack was built."""

OTHER = "other"
"""What the Hub calls a licence that it has no identifier for."""

PERMISSIVE = "permissive"
COPYLEFT = "copyleft"
NON_COMMERCIAL = "non-commercial"
NO_DERIVATIVES = "no-derivatives"
USE_RESTRICTED = "use-restricted"
MODEL_TERMS = "model-terms"
UNKNOWN = "unknown"

_FAMILIES = {
    PERMISSIVE: """
        apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib ncsa postgresql ms-pl bsl-1.0 afl-3.0
        artistic-2.0 ecl-2.0 wtfpl unlicense pddl cc0-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 odc-by
        cdla-permissive-1.0 cdla-permissive-2.0 c-uda etalab-2.0 ofl-1.1 openmdw-1.0
    """,
    COPYLEFT: """
        gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0
        gfdl lppl-1.3c odbl cdla-sharing-1.0 cc-by-sa-3.0 cc-by-sa-4.0
    """,
    NON_COMMERCIAL: """
        cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 h-research intel-research
        apple-amlr fair-noncommercial-research-license
    """,
    NO_DERIVATIVES: "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
    USE_RESTRICTED: """
        openrail openrail++ creativeml-openrail-m bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    """,
    MODEL_TERMS: "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community deepfloyd-if-license apple-ascl",
}
_FAMILY_OF = {name: family for family, names in _FAMILIES.items() for name in names.split()}

_SPDX = {
    "0bsd": "bsd",
    "bsd-4-clause": "bsd",
    "gfdl-1.3": "gfdl",
    "odbl-1.0": "odbl",
    "odc-by-1.0": "odc-by",
    "pddl-1.0": "pddl",
    "c-uda-1.0": "c-uda",
}
"""SPDX's words for what the Hub calls otherwise."""


def hub_license(text: str) -> str | None:
    """Return the Hub's identifier for a licence as people write it (``Apache-2.0``, ``GPL-3.0-or-later``), or None."""
    name = text.strip().lower()
    for ending in ("-only", "-or-later", "+"):
        if name not in _FAMILY_OF:
            name = name.removesuffix(ending)
    name = _SPDX.get(name, name)
    return name if name in _FAMILY_OF else None


def stated_license(readme: bytes) -> str | None:
    """Return the licence that a model's README states in its front matter, or None.

    Raises:
        UsageError: the front matter cannot be read.
    """
    front = read_front_matter(split_readme(readme.decode(errors="replace"))[0])
    found = [one for one in front.texts("license") if one != OTHER] or front.texts("license_name")
    return found[0] if found else None


def license_family(text: str | None) -> str:
    """Return what a licence asks of changed versions, in one of the words above."""
    return _FAMILY_OF.get(hub_license(text or "") or "", UNKNOWN)


def license_conflict(pack: str | None, base: str) -> str | None:
    """Return a sentence on why a pack's licence does not go with its base's, or None where nothing is known against it.

    Args:
        pack: the pack's licence; None where it has none.
        base: the base's.
    """
    family, own = license_family(base), license_family(pack)
    same = (hub_license(pack or "") or pack or "").lower() == (hub_license(base) or base).lower()
    if family == NO_DERIVATIVES:
        return f"{base}, the licence of the base, does not allow that changed versions are published."
    if same or pack is None or family in (PERMISSIVE, UNKNOWN):
        return None
    if family == NON_COMMERCIAL and own in (PERMISSIVE, COPYLEFT, USE_RESTRICTED, MODEL_TERMS):
        return f"{base}, the licence of the base, forbids commercial use, and {pack} allows it."
    if family == COPYLEFT and own != UNKNOWN:
        return f"{base}, the licence of the base, asks that changed versions have the same licence, and not {pack}."
    if family == USE_RESTRICTED and own in (PERMISSIVE, COPYLEFT):
        return f"{base}, the licence of the base, restricts what it is used for and hands that on; {pack} does not."
    if family == MODEL_TERMS and own != UNKNOWN:
        return f"The terms of the base, {base}, go on holding for what is made from it; {pack} does not say so."
    return None
