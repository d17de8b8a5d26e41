"""The model card of a pack's repository, ``README.md``, written from its manifest.

The front matter follows the Hub's conventions, so that the Hub lists the pack under its base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from skillhub.hub import PACK_TAG
from skillhub.manifest import Evaluation, Manifest, Variant
from skillhub.names import PackName
from skillhub.packs import describe_base
from skillhub.releases import release_folder

LIBRARY = "skillhub"

_MAX_SUMMARY = 300


def model_card(manifest: Manifest, name: PackName) -> str:
    """Return the Markdown text of a pack's model card.

    Args:
        manifest: of the newest final release.
        name: the pack's name, with its owner.
    """
    sections = [
        _front_matter(manifest),
        f"# {manifest.name}",
        manifest.summary,
        _usage(name),
        _bases(manifest.variants),
        _evaluation([one for variant in manifest.variants for one in variant.evaluation]),
        _prompts(manifest.skills.prompts),
        f"This page describes version {manifest.version}: `{release_folder(manifest.version)}`, manifest "
        f"`sha256:{manifest.digest}`. Earlier releases stay in `releases/`.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: Manifest) -> str:
    """Return the YAML block; every text is quoted as JSON, which YAML reads."""
    repos = list(dict.fromkeys(variant.base.repo for variant in manifest.variants if variant.base.repo))
    tags = list(dict.fromkeys([PACK_TAG, *manifest.skills.tags]))
    lines = ["---", f"library_name: {LIBRARY}", "tags:", *_items(tags)]
    if repos:
        lines += ["base_model:", *_items(repos), "base_model_relation: adapter"]
    if manifest.license:
        lines.append(f"license: {_quoted(manifest.license)}")
    if manifest.summary:
        # a key of our own: a registry's list of models has the front matter, so a search needs no request a pack
        lines.append(f"summary: {_quoted(' '.join(manifest.summary.split())[:_MAX_SUMMARY])}")
    return "\n".join([*lines, "---"])


def _items(texts: Iterable[str]) -> list[str]:
    return [f"- {_quoted(text)}" for text in texts]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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
        f"| {_cell(describe_base(variant))} | {variant.size / 1e6:.1f} MB | {variant.codec.bits_per_weight:.3g} |"
        for variant in variants
    ]
    return "\n".join(["| Base model | Size | Bits per weight |", "|---|---|---|", *rows])


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


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
