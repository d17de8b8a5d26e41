"""Licences: what the Hub calls them, and what goes with what."""

from __future__ import annotations

import pytest

from skillhub.licenses import hub_license, license_conflict, license_family


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Apache-2.0", "apache-2.0"),
        (" MIT ", "mit"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("GPL-2.0-only", "gpl-2.0"),
        ("GPL-2.0+", "gpl-2.0"),
        ("openrail++", "openrail++"),
        ("ODbL-1.0", "odbl"),
        ("llama3.2", "llama3.2"),
        ("Acme Model License", None),
        ("other", None),
        ("", None),
    ],
)
def test_the_hubs_identifier(text: str, name: str | None) -> None:
    assert hub_license(text) == name


@pytest.mark.parametrize(
    ("pack", "base", "words"),
    [
        ("mit", "cc-by-nc-4.0", "forbids commercial use"),
        ("gpl-3.0", "cc-by-nc-sa-4.0", "forbids commercial use"),
        ("Apache-2.0", "GPL-3.0", "the same licence"),
        ("mit", "cc-by-sa-4.0", "the same licence"),
        ("apache-2.0", "llama3.2", "go on holding"),
        ("gemma", "llama3.1", "go on holding"),
        ("mit", "openrail", "hands that on"),
        ("cc-by-nc-nd-4.0", "cc-by-nc-nd-4.0", "does not allow that changed versions"),
        (None, "cc-by-nd-4.0", "does not allow that changed versions"),
    ],
)
def test_what_does_not_go_together_is_said(pack: str | None, base: str, words: str) -> None:
    sentence = license_conflict(pack, base)
    assert sentence is not None and words in sentence and base in sentence


@pytest.mark.parametrize(
    ("pack", "base"),
    [
        ("mit", "apache-2.0"),
        ("gpl-3.0", "mit"),
        ("cc-by-nc-4.0", "mit"),
        ("llama3.2", "llama3.2"),
        ("LLAMA3.2", "llama3.2"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0"),
        ("GPL-3.0-only", "gpl-3.0"),
        ("creativeml-openrail-m", "openrail"),
        ("Acme Model License", "cc-by-nc-4.0"),  # nobody here knows what it allows
        ("mit", "Acme Model License"),
        (None, "cc-by-nc-4.0"),
    ],
)
def test_what_goes_together_or_is_not_known_is_not(pack: str | None, base: str) -> None:
    assert license_conflict(pack, base) is None


def test_unknown_is_a_family() -> None:
    assert license_family(None) == license_family("other") == license_family("Acme") == "unknown"
