"""The model card of a pack's repository, ``README.md``, written from its manifest.

The front matter follows the Hub's conventions, so that the Hub lists the pack under its base model. What a person has
written is kept: keys of their own in the front matter, and everything around the part between our two marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from skillhub.frontmatter import FrontMatter, Value, read_front_matter, split_readme, write_front_matter
from skillhub.hub import PACK_TAG
from skillhub.licenses import OTHER, hub_license
from skillhub.manifest import Evaluation, Manifest, Variant
from skillhub.names import PackName, parse_version
from skillhub.packs import describe_base
from skillhub.releases import ReleaseIndex, release_folder

LIBRARY = "skillhub"
README_FILE = "README.md"

_MAX_SUMMARY = 300
_BEGIN = "<!-- skillhub:begin written anew with every release; what is above and below stays as it is. tags="
_END = "<!-- skillhub:end -->"
_MARKED = re.compile(
    r"^<!-- skillhub:begin\b[^\n]*?(?:tags=(?P<tags>\[[^\n]*\]))? *-->\n.*?^<!-- skillhub:end -->$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"^<!-- skillhub:(?:begin|end)\b[^\n]*-->\n?", re.MULTILINE)
_HEADING = re.compile(r"^# ", re.MULTILINE)
_OURS = ("library_name", "tags", "base_model_relation", "summary")


def model_card(manifest: Manifest, name: PackName, *, index: ReleaseIndex | None = None, readme: str = "") -> str:
    """Return the Markdown text of a pack's model card.

    Args:
        manifest: of the release that the card describes: the newest final one that stands.
        name: the pack's name, with its owner.
        index: the releases; says whether the pack is deprecated or the release yanked.
        readme: the text of the card so far, which people may have written in.

    Raises:
        UsageError: the front matter so far cannot be read.
    """
    block, body = split_readme(readme)
    marked = _MARKED.findall(body)
    own = _MARKED.sub("", body) if len(marked) == 1 else _MARK.sub("", body)
    generated = _generated(manifest, name, index or ReleaseIndex(), with_title=not _HEADING.search(own))
    front = _front_matter(manifest, read_front_matter(block), _known_tags(marked[0] if marked else ""))
    if len(marked) == 1:
        text = _MARKED.sub(lambda found: generated, body).strip("\n")
    else:
        text = "\n\n".join(part for part in (own.strip("\n"), generated) if part)
    return f"{front}\n\n{text}\n"


def _known_tags(text: str) -> list[str]:
    """Return the tags that the card before took from its manifest, so that one that was dropped does not stay."""
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [one for one in found if isinstance(one, str)]


def _generated(manifest: Manifest, name: PackName, index: ReleaseIndex, *, with_title: bool) -> str:
    sections = [
        f"# {manifest.name}" if with_title else "",
        *_warnings(manifest, index),
        manifest.summary,
        _usage(name),
        _bases(manifest.variants),
        _evaluation([one for variant in manifest.variants for one in variant.evaluation]),
        _prompts(manifest.skills.prompts),
        f"This page describes version {manifest.version}: `{release_folder(manifest.version)}`, manifest "
        f"`sha256:{manifest.digest}`. Earlier releases stay in `releases/`.",
    ]
    text = "\n\n".join(section for section in sections if section)
    tags = json.dumps(manifest.skills.tags).replace("-", "\\u002d").replace(">", "\\u003e")
    return f"{_BEGIN}{tags} -->\n\n{text.replace('<!--', '&lt;!--')}\n\n{_END}"


def _warnings(manifest: Manifest, index: ReleaseIndex) -> list[str]:
    """Return what must be said first: the pack is deprecated, the release was withdrawn."""
    found = []
    if index.deprecated:
        found.append(f"> [!WARNING]\n> This pack is deprecated: {_line(index.deprecated)}")
    release = index.find(parse_version(manifest.version))
    if release is not None and release.yanked is not None:
        found.append(f"> [!WARNING]\n> Version {manifest.version} was withdrawn: {_line(release.yanked)}")
    return found


def _front_matter(manifest: Manifest, before: FrontMatter, known_tags: Iterable[str]) -> str:
    """Return the YAML block: our keys, then what a person has added to it."""
    repos = list(dict.fromkeys(variant.base.repo for variant in manifest.variants if variant.base.repo))
    dropped = set(known_tags) - set(manifest.skills.tags)
    added = [tag for tag in before.texts("tags") if tag not in dropped]
    values: dict[str, Value] = {
        "library_name": LIBRARY,
        "tags": list(dict.fromkeys([PACK_TAG, *manifest.skills.tags, *added])),
    }
    if repos:
        values["base_model"] = repos
    if repos or "base_model" in before.values:
        values["base_model_relation"] = "adapter"
    values |= _license(manifest)
    if manifest.summary:
        # a key of our own: a registry's list of models has the front matter, so a search needs no request a pack
        values["summary"] = _line(manifest.summary)[:_MAX_SUMMARY]
    ours = {*_OURS, *values}
    if "license" in values and values["license"] != OTHER:
        ours.add("license_name")  # of the licence before
    return write_front_matter(values, (lines for key, lines in before.lines.items() if key not in ours))


def _license(manifest: Manifest) -> dict[str, Value]:
    """Return the licence as the Hub wants it: one of its identifiers, or ``other`` and a name like one."""
    if not manifest.license:
        return {}
    known = hub_license(manifest.license)
    if known:
        return {"license": known}
    name = re.sub(r"[^a-z0-9.]+", "-", manifest.license.lower()).strip("-.")
    return {"license": OTHER, "license_name": name} if name and name != OTHER else {"license": OTHER}


def _usage(name: PackName) -> str:
    return "\n".join(
        [
            "A [SkillPack](https://arxiv.org/abs/2505.18502): the weights that a fine-tune changed, compressed.",
            "",
            "```sh",
            f"skillhub install {name}",
            "```",
            "",
            "```python",
            "import skillhub",
            "",
            f'model = skillhub.graft(model, ["{name}"])',
            "```",
        ]
    )


def _bases(variants: Iterable[Variant]) -> str:
    rows = [
        f"| {_cell(describe_base(variant))} | {_size(variant.size)} | {variant.codec.bits_per_weight:.3g} | "
        f"{_cell(variant.codec.way)} |"
        for variant in variants
    ]
    return "\n".join(["| Base model | Size | Bits per weight | Preset |", "|---|---|---|---|", *rows])


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _evaluation(scores: Iterable[Evaluation]) -> str:
    rows = [
        f"| {_cell(one.task)} | {_cell(one.metric)} | {one.base:.4g} | "
        f"{'' if one.tuned is None else f'{one.tuned:.4g}'} | {one.pack:.4g} |"
        for one in scores
    ]
    header = ["## Evaluation", "", "| Task | Metric | Base | Fine-tune | With this pack |", "|---|---|---|---|---|"]
    return "\n".join([*header, *rows]) if rows else ""


def _prompts(prompts: Iterable[str]) -> str:
    items = [f"- {_cell(prompt)}" for prompt in prompts]
    return "\n".join(["## Prompts it is good at", "", *items]) if items else ""


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
