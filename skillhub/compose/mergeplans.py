"""What running a file of mergekit would read and write, before it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skillhub.compose.mergecompanions import chosen_template
from skillhub.compose.mergefiles import open_merge, ordered, waits_for
from skillhub.compose.modelmerges import MergedTensor, ModelMerge
from skillhub.compose.packsources import EnvironmentSource
from skillhub.interop.mergekit.configurations import Configuration, read_configurations
from skillhub.progress import Notice


@dataclass(frozen=True, eq=False)
class MergePlan:
    """One document, as far as it can be foreseen.

    Attributes:
        document: the document.
        merge: its models, opened; None where it uses the result of another document, which is not there yet.
        tensors: of its result.
    """

    document: Configuration
    merge: ModelMerge | None = None
    tensors: tuple[MergedTensor, ...] = ()

    @property
    def write_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_file(
    path: str | Path, *, environment: EnvironmentSource | None = None, notice: Notice | None = None
) -> list[MergePlan]:
    """Say what each document of a file would read and write, from headers alone, in the order that they run in.

    Args:
        path: the file.
        environment: where pack names are looked up.
        notice: told of models without a tokenizer.

    Raises:
        SkillhubError: what running it would fail with: as :func:`skillhub.compose.mergefiles.fuse_file`.
    """
    plans = []
    documents = ordered(read_configurations(Path(path)))
    for one in documents:
        if waits_for(one, documents):
            plans.append(MergePlan(one))
            continue
        merge = open_merge(one, {}, environment=environment, notice=notice)
        if one.chat_template:
            chosen_template(merge)
        plans.append(MergePlan(one, merge, tuple(merge.plan())))
    return plans
