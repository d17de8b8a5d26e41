"""The model card of a merged model: the models it was made of, and the file that made it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from skillhub.adapters import Adapter
from skillhub.compose.lineage import cell_text
from skillhub.compose.modelmerges import ModelMerge
from skillhub.compose.modelsources import ModelSource
from skillhub.interop.mergekit.configurations import Configuration


def merge_card(merge: ModelMerge, documents: Sequence[Configuration]) -> str:
    """Return the card (Markdown with the Hub's metadata) of a merged model.

    Args:
        merge: what was merged.
        documents: all of its file, in the order that they ran in.
    """
    repositories = list(dict.fromkeys(source.base.repo for source in merge.sources.values() if source.base.repo))
    metadata = ["library_name: transformers", "tags:", "- skillhub", "- merge"]
    if repositories:
        metadata += ["base_model:", *(f"- {json.dumps(one)}" for one in repositories), "base_model_relation: merge"]
    text = "---\n".join(one.text for one in documents[: documents.index(merge.configuration) + 1])
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    rows = [_row(source) for source in merge.sources.values()]
    return "\n".join(
        [
            "---",
            *metadata,
            "---",
            "",
            f"# A merge of {len(merge.sources)} model{'s' if len(merge.sources) > 1 else ''}",
            "",
            f"Merged by the method `{merge.configuration.method}`, from a configuration of mergekit, by "
            "[skillhub](https://pypi.org/project/skillhub-packs/).",
            "",
            "| Model | Revision | Packs and adapters |",
            "|---|---|---|",
            *rows,
            "",
            f"{fence}yaml",
            text.rstrip("\n"),
            fence,
            "",
            f"Seed {merge.seed}, rounding {merge.rounding}: the same models and the same file give the same weights.",
            "",
        ]
    )


def _row(source: ModelSource) -> str:
    name = source.base.repo or cell_text(source.checkpoint.folder.resolve().name)
    deltas = [
        f"{cell_text(str(one.pack))} `{one.pack.digest}`" for one in source.deltas if not isinstance(one.pack, Adapter)
    ]
    deltas += [cell_text(str(one.pack)) for one in source.deltas if isinstance(one.pack, Adapter)]
    return f"| {name} | {source.base.revision or '-'} | {', '.join(deltas) or '-'} |"
