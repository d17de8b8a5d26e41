"""Canonical tensor names: what a checkpoint's tensors are called whatever class and save wrote them.

One wrapper component (``model.``, ``bert.``, …) is dropped, buffers that hold no weights are left out, and tied
aliases (an output head that equals the input embedding) can be recognised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from skillhub.errors import UsageError

Shape = tuple[int, ...]

_WRAPPER_NAMES = (
    "albert bert biogpt bloom convbert data2vec_text deberta distilbert electra ernie "
    "esm flaubert funnel git gpt_neox gte ibert layoutlm led longformer "
    "luke mobilebert model mpnet mra nomic_bert nystromformer prophetnet rembert roberta "
    "roberta_prelayernorm roformer squeezebert tapas transformer visual_bert vit xlm yoso "
)
WRAPPERS = frozenset(_WRAPPER_NAMES.split())
"""Leading components that a class with a head adds to the names of the model it wraps (``base_model_prefix``)."""

EMBEDDINGS = (
    "shared.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tokens_embed.weight",
    "tok_embeddings.weight",
    "word_embedding.weight",
    "embeddings.weight",
)
"""Names (last components) of input embeddings, the kept one of a tied pair first."""

HEADS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "lm_head.out_proj.weight",
    "embed_out.weight",
    "cls.predictions.decoder.weight",
    "predictions.decoder.weight",
    "head.decoder.weight",
    "decoder.weight",
    "generator_lm_head.weight",
    "vocab_projector.weight",
    "output_projection.weight",
    "pred_layer.proj.weight",
    "proj_out.weight",
    "lm_loss.weight",
    "head.weight",
    "output.weight",
)
"""Names (last components) of output heads that may be tied to an input embedding."""

_STACKS = (
    ("encoder.embed_tokens.weight", ("shared.weight",)),
    ("decoder.embed_tokens.weight", ("shared.weight", "encoder.embed_tokens.weight")),
)
_HEAD_BIAS = re.compile(r"(?:^|\.)(?:predictions|lm_head|mlm_head|head)\.decoder\.bias$")

_BUFFER = re.compile(
    r"(?:^|\.)(?:position_ids|token_type_ids|inv_freq|original_inv_freq|masked_bias|cos_cached|sin_cached)$"
)
_MASK = re.compile(r"(?:^|\.)(?:attn|attention|self_attention)\.bias$")


def canonical_names(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Return the canonical name of every tensor that counts; listed buffers are missing.

    At most one wrapper component is dropped in a checkpoint: the listed one that leads to an input embedding or, where
    there is no embedding, the listed one that leads the most names. A name keeps its wrapper if another tensor has the
    name without it.

    Args:
        shapes: the shape of every tensor, by its name in the checkpoint.
    """
    names = {name for name, shape in shapes.items() if not is_buffer(name, shape)}
    wrapper = _wrapper(names)
    if wrapper is None:
        return {name: name for name in names}
    unwrapped = {name: name.removeprefix(f"{wrapper}.") for name in names}
    return {name: name if bare in names else bare for name, bare in unwrapped.items()}


def is_buffer(name: str, shape: Shape) -> bool:
    """Say whether a tensor is a listed buffer: positions, frequencies or a causal mask, computed and not learned."""
    causal_mask = bool(_MASK.search(name)) and len(shape) == 4 and shape[:2] == (1, 1)
    return causal_mask or bool(_BUFFER.search(name))


def is_embedding(name: str) -> bool:
    """Say whether a canonical name is that of an input embedding."""
    return _embedding_rank(name) is not None


def is_layer_tensor(name: str) -> bool:
    """Say whether a canonical name lies in a numbered block, such as ``layers.3.mlp.up_proj.weight``."""
    return any(component.isdecimal() for component in name.split("."))


def is_vocabulary_tensor(name: str) -> bool:
    """Say whether a canonical name is that of an embedding, an output head or its bias: a row for every token."""
    weight = name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
    return _ends_with(weight, EMBEDDINGS + HEADS + ("predictions.weight",))


def tied_aliases(names: Iterable[str], equal: Callable[[str, str], bool]) -> dict[str, str]:
    """Return alias → original for the tensors that repeat another: tied heads, embeddings of stacks, head biases.

    Args:
        names: canonical names.
        equal: says whether two tensors have the same shape and content; asked of listed pairs only.
    """
    aliases: dict[str, str] = {}
    for alias, original in alias_candidates(names):
        if alias not in aliases and original not in aliases and equal(alias, original):
            aliases[alias] = original
    return aliases


def alias_candidates(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (alias, original) for every pair that is tied in some models, in order of preference."""
    names = sorted(names)
    ranked = sorted((rank, name) for name in names if (rank := _embedding_rank(name)) is not None)
    embeddings = [name for _, name in ranked]
    for stack, originals in _STACKS:
        for alias in names:
            if _ends_with(alias, (stack,)):
                yield from ((alias, original) for original in embeddings if _ends_with(original, originals))
    for alias in names:
        if _ends_with(alias, HEADS) and not is_embedding(alias):
            yield from ((alias, original) for original in embeddings)
        original = alias.removesuffix("decoder.bias") + "bias"
        if _HEAD_BIAS.search(alias) and original in names:
            yield alias, original


def _wrapper(names: Iterable[str]) -> str | None:
    leading = Counter(name.partition(".")[0] for name in names)
    embeddings = [name for name in names if is_embedding(name)]
    candidates = {name.partition(".")[0] for name in embeddings} if embeddings else set(leading)
    listed = candidates & WRAPPERS
    return max(listed, key=lambda component: (leading[component], component), default=None)


def _embedding_rank(name: str) -> int | None:
    return next((rank for rank, ending in enumerate(EMBEDDINGS) if _ends_with(name, (ending,))), None)


def _ends_with(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def refuse_changed_layers(what: str, names: Sequence[str], *, verb: str) -> None:
    """Refuse tensors added to or removed from numbered blocks: the base's config.json would not describe the result.

    Args:
        what: the fine-tune or the pack, for the message.
        names: canonical names of the tensors that only one of the two has.
        verb: what it does with them, ``adds`` or ``lacks``.

    Raises:
        UsageError: one is in a numbered block.
    """
    layered = [name for name in names if is_layer_tensor(name)]
    if layered:
        more = f" and {len(layered) - 3} more" if len(layered) > 3 else ""
        raise UsageError(
            f"{what} {verb} {', '.join(layered[:3])}{more} in the layers: its architecture is not the base's, which a pack "
            "cannot carry.",
            hint="Give the base with the same architecture, or share the fine-tune as a whole checkpoint.",
            tensors=layered[:3],
        )
