"""How a merge names its models: a folder, a repository with its revision, a pack; with an adapter after a plus sign."""

from __future__ import annotations

from dataclasses import dataclass, field

from skillhub.interop.mergekit.nodes import Entry, Place

_FORM = "Write a folder, or owner/name, with @revision and +adapter where they are needed."


@dataclass(frozen=True)
class ModelName:
    """A model as a file names it; two names are the same model when all but their places are equal.

    Attributes:
        path: a folder, a repository, an installed pack, or the name of an earlier document.
        revision: of the repository.
        adapter: what is added to the model's weights: an adapter or a pack, by its folder or installed name.
        place: where it was named.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    place: Place = field(default=Place("", 0, 0), compare=False)

    def __str__(self) -> str:
        text = f"{self.path}@{self.revision}" if self.revision else self.path
        return f"{text}+{self.adapter}" if self.adapter else text


def read_model(entry: Entry) -> ModelName:
    """Read a model's name: ``path[@revision][+adapter]``, or a mapping of ``model`` and ``lora``.

    Raises:
        UsageError: it is none, or asks for another architecture than the model's own.
    """
    if isinstance(entry.value, str):
        path, *adapters = entry.text().split("+")
        if len(adapters) > 1:
            raise entry.place.error(f"{entry.value!r} names two adapters.", "Name one; fuse the other first.")
        name, revision = _path(path, entry.place)
        return ModelName(name, revision, _adapter(adapters[0], entry.place) if adapters else None, entry.place)
    fields = entry.fields(
        ("model", "lora"),
        refused={"override_architecture": "Remove it: a checkpoint is read by its own tensors' names."},
    )
    if "model" not in fields:
        raise entry.place.error("no model is named.", _FORM)
    name, revision = _located(fields["model"])
    adapter = None
    if "lora" in fields:
        text, pinned = _located(fields["lora"])
        adapter = _adapter(f"{text}@{pinned}" if pinned else text, fields["lora"].place)
    return ModelName(name, revision, adapter, entry.place)


def _located(entry: Entry) -> tuple[str, str | None]:
    """Read a path: a text, or a mapping of ``path`` and ``revision``."""
    if isinstance(entry.value, str):
        return _path(entry.text(), entry.place)
    fields = entry.fields(("path", "revision"))
    if "path" not in fields:
        raise entry.place.error("no path is given.", _FORM)
    return fields["path"].text(), fields["revision"].text() if "revision" in fields else None


def _path(text: str, place: Place) -> tuple[str, str | None]:
    path, at, revision = text.partition("@")
    if not path or (at and not revision) or "@" in revision:
        raise place.error(f"{text!r} names no model.", _FORM)
    return path, revision or None


def _adapter(text: str, place: Place) -> str:
    path, revision = _path(text, place)
    if revision:
        raise place.error(
            f"the adapter {path} is asked for at the revision {revision}.",
            f"Install it at that revision (skillhub install 'peft:{path}@{revision}'), then write +{path}.",
        )
    return path
