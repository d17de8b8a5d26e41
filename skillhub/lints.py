"""What an author should know before a release is published, because nothing can be corrected afterwards.

What would be wrong is refused; everything else is said and done as the author wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from skillhub import hub
from skillhub.errors import NotFoundError, SkillhubError, TrustError, UsageError
from skillhub.indexes import read_index
from skillhub.licenses import BASE_LICENSE, license_conflict, stated_license
from skillhub.manifest import BaseInfo, Manifest
from skillhub.names import PackName, Requirement, parse_requirement, parse_version
from skillhub.packs import base_text
from skillhub.releases import Event, ReleaseIndex
from skillhub.signing import signer_text, verify_digest

RegistriesOf = Callable[[PackName], Sequence[hub.Registry]]
"""From a pack to registries that it may come from."""

WARNING = "warning"
NOTE = "note"

_AUTHOR_FILE = "skillpack.toml"
_MAX_README_BYTES = 8 << 20


@dataclass(frozen=True)
class Finding:
    """Something that an author should know.

    Attributes:
        level: ``warning`` for what should be put right, ``note`` for what is merely good to know.
        code: one word for programs.
        message: what it is.
        hint: what to do about it.
    """

    level: str
    code: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.message} {self.hint}".rstrip()


def refuse_contradictions(manifest: Manifest, name: PackName) -> None:
    """Refuse a pack that could never be installed.

    Raises:
        UsageError: it requires itself, conflicts with itself, or conflicts with all of what it requires.
    """
    hint = f"Correct it in {_AUTHOR_FILE} and build the pack again."
    for verb, texts in (("requires", manifest.requires), ("conflicts with", manifest.conflicts)):
        if any(parse_requirement(text).pack == name for text in texts):
            raise UsageError(f"{name} {manifest.version} {verb} itself.", hint=hint)
    required = {parse_requirement(text).pack for text in manifest.requires}
    for text in manifest.conflicts:
        conflict = parse_requirement(text)
        if conflict.pack in required and not conflict.specifier:
            raise UsageError(f"{name} {manifest.version} requires {conflict.pack} and conflicts with it.", hint=hint)


def refuse_other_signer(manifest: Manifest, event: Event, index: ReleaseIndex, name: PackName) -> None:
    """Refuse a release that users of the earlier ones would refuse: unsigned after signed ones, or by another key.

    Raises:
        TrustError: it is one.
    """
    signed = [release for release in index.releases if release.event.signature is not None]
    if not signed:
        return
    last = signed[-1]
    hint = (
        "Sign with the same key: SKILLHUB_SIGNING_KEY names its file. If the change is meant: --allow-signer-change; "
        f"whoever has the pack must then accept it with `skillhub trust forget {name}`."
    )
    if manifest.signer is None or event.signature is None:
        raise TrustError(f"{name} {last.version} is signed, and {manifest.version} would not be.", hint=hint)
    if not verify_digest(manifest.signer.public_key, last.manifest_digest, last.event.signature or ""):
        raise TrustError(
            f"{name} {last.version} is signed by another key than {signer_text(manifest.signer)}.", hint=hint
        )


def lint_release(
    registry: hub.Registry, manifest: Manifest, index: ReleaseIndex, elsewhere: RegistriesOf = lambda name: ()
) -> list[Finding]:
    """Return what the author of a new release should know.

    Args:
        registry: where it is to be published; asked for required packs and the base's licence.
        manifest: of the release.
        index: what is published so far.
        elsewhere: where required packs may come from besides.
    """
    return [
        *_lint_words(manifest),
        *_lint_version(manifest, index),
        *_lint_requirements(registry, manifest, elsewhere),
        *_lint_licenses(registry, manifest),
    ]


def _lint_words(manifest: Manifest) -> Iterator[Finding]:
    """Look for what people and search need, and what is missing."""
    again = "and build the pack again."
    missing = {
        "summary": (manifest.summary.strip(), "summary: people see it in search", f"Write `summary` in {_AUTHOR_FILE}"),
        "license": (manifest.license, "licence, so nobody may use it", f"Write `license` in {_AUTHOR_FILE}"),
        "tags": (manifest.skills.tags, "tags to be found by", f"Write `tags` under [skills] in {_AUTHOR_FILE}"),
        "prompts": (
            manifest.skills.prompts,
            "example prompts, by which a router tells what it is for",
            f"Write `prompts` under [skills] in {_AUTHOR_FILE}",
        ),
    }
    for field, (value, what, remedy) in missing.items():
        if not value:
            yield Finding(WARNING, f"no-{field}", f"The pack has no {what}.", f"{remedy} {again}")
    for variant in manifest.variants:
        base = base_text(variant.base.fingerprint, variant.base.repo)
        if not variant.evaluation:
            remedy = "Measure it: skillhub evaluate PACK …"
            yield Finding(WARNING, "no-evaluation", f"Nothing says how well the pack does on {base}.", remedy)
        if variant.base.repo is None:
            told = f"Where {base} is published is not known, so no registry shows the pack under it."
            yield Finding(NOTE, "no-base-repository", told, "Build the pack with --base OWNER/NAME.")


def _lint_version(manifest: Manifest, index: ReleaseIndex) -> Iterator[Finding]:
    version = parse_version(manifest.version)
    newest = index.newest_final()
    if newest is not None and version < newest.version and not version.is_prerelease:
        told = f"{newest.version} is published already: it stays the newest, and {version} is chosen by whoever asks."
        yield Finding(WARNING, "older-version", told)
    if version.is_prerelease:
        told = f"{version} is a pre-release: it is chosen only where somebody asks for pre-releases."
        yield Finding(NOTE, "pre-release", told)
    if index.moved_to:
        told = f"The pack has moved to {index.moved_to}: whoever installs it is told to write that name."
        yield Finding(WARNING, "moved", told, "Publish it there.")
    if index.deprecated:
        yield Finding(NOTE, "deprecated", f"The pack is deprecated: {index.deprecated}.")


def _lint_requirements(registry: hub.Registry, manifest: Manifest, elsewhere: RegistriesOf) -> Iterator[Finding]:
    for text in manifest.requires:
        required = parse_requirement(text)
        try:
            index = _find_index(registry, required.pack, elsewhere)
        except NotFoundError:
            told = f"{required.pack}, which the pack requires, is not at {registry.address}."
            yield Finding(
                WARNING, "unknown-requirement", told, "Publish it as well; without it nobody can install this."
            )
        except SkillhubError as error:
            yield Finding(NOTE, "unread-requirement", f"Whether {text} exists is not known: {error.message}")
        else:
            yield from _lint_requirement(required, index, manifest)


def _find_index(registry: hub.Registry, name: PackName, elsewhere: RegistriesOf) -> ReleaseIndex:
    try:
        return read_index(registry, name, offline=False).index
    except NotFoundError:
        for other in elsewhere(name):
            with suppress(NotFoundError):
                return read_index(other, name, offline=False).index
        raise


def _lint_requirement(required: Requirement, index: ReleaseIndex, manifest: Manifest) -> Iterator[Finding]:
    standing = [release for release in index.releases if release.yanked is None]
    matching = [release for release in standing if required.specifier.contains(release.version, prereleases=True)]
    if not matching:
        there = ", ".join(str(release.version) for release in standing[-5:]) or "none that stands"
        told = f"No release of {required.pack} is {required.specifier}: there is {there}."
        yield Finding(WARNING, "unmet-requirement", told, "Publish such a release; without it nobody can install this.")
        return
    for variant in manifest.variants:
        if not any(release.variant_for(variant.base.fingerprint) for release in matching):
            base = base_text(variant.base.fingerprint, variant.base.repo)
            told = f"No release that {required} means is for {base}, which this pack is for."
            yield Finding(WARNING, "requirement-without-base", told, "Publish one; without it nobody can install this.")


def _lint_licenses(registry: hub.Registry, manifest: Manifest) -> Iterator[Finding]:
    said = manifest.provenance.get(BASE_LICENSE)
    bases = {base_text(variant.base.fingerprint, variant.base.repo): variant.base for variant in manifest.variants}
    for text, base in bases.items():
        license = _base_license(registry, base) or said
        if license is None:
            told = f"The licence of {text} is not known, so nobody checked whether the pack's goes with it."
            yield Finding(NOTE, "base-license-unknown", told)
        elif conflict := license_conflict(manifest.license, license):
            yield Finding(WARNING, "license", conflict, f"Read it, and choose the pack's `license` in {_AUTHOR_FILE}.")


def _base_license(registry: hub.Registry, base: BaseInfo) -> str | None:
    """Return the licence that a base's page on the registry states, or None."""
    if base.repo is None:
        return None
    try:
        read = hub.read_file(
            registry, base.repo, "README.md", revision=base.revision or "main", limit=_MAX_README_BYTES
        )
        return stated_license(read.data) if read else None
    except SkillhubError:  # it is not there, or not for us
        return None
