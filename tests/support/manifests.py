"""A manifest with every field set, and hypothesis strategies for manifests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET

from skillhub.manifest import (
    MANIFEST_SCHEMA,
    BaseInfo,
    CodecInfo,
    Evaluation,
    FileEntry,
    Manifest,
    Skill,
    TensorEntry,
    Variant,
    variant_folder,
)
from skillhub.routingcards import RouterInfo

BASE = "skb1:" + "0123456789abcdef" * 4
OTHER_BASE = "skb1:" + "fedcba9876543210" * 4


def manifest_fields() -> dict[str, Any]:
    """Return the fields of a manifest in which every field has a value; a new copy each time."""
    folder = "variants/0123456789ab"
    base = {
        "fingerprint": BASE,
        "repo": "acme/small-base",
        "revision": "a" * 40,
        "architecture": "LlamaForCausalLM",
        "parameters": 134_515_008,
        "dtype": "BF16",
        "tokenizer": "1" * 64,
        "vocabulary_size": 49_152,
        "files": [{"model.safetensors": "2" * 64}, {"model-1.safetensors": "3" * 64, "model-2.safetensors": "4" * 64}],
    }
    tensor = {"shape": [576, 576], "change": "delta", "codecs": ["lowrank", "zero"], "bytes": 9_216, "digest": "5" * 64}
    tensors = {
        "layers.0.q.weight": {**tensor, "relative_error": 0.125, "max_error": 1e-05},
        "lm_head.weight": {
            **{"shape": [3, 0], "change": "added", "codecs": ["exact"], "bytes": 0, "digest": None},
            **{"relative_error": 0.0, "max_error": 0.0},
        },
    }
    files = [
        {"path": f"{folder}/base.json.zst", "size": 4_242, "sha256": "6" * 64},
        {"path": f"{folder}/delta-00001.safetensors", "size": 9_400, "sha256": "7" * 64},
        {"path": f"{folder}/router.safetensors", "size": 2_400, "sha256": "8" * 64},
    ]
    router = {
        **{"path": f"{folder}/router.safetensors", "layer": 12, "pooling": "mean", "template": "Q: {}\nA:"},
        **{"rank": 8, "threshold": -0.5},
    }
    evaluation = {"task": "math held-out", "metric": "nll", "base": 2.5, "tuned": 0.5, "pack": 0.5625, "rows": 500}
    variant = {
        "base": base,
        "codec": {"preset": "near", "bits_per_weight": 0.375, "tensors": tensors},
        "files": files,
        "evaluation": [evaluation, {**evaluation, "metric": "exact", "tuned": None}],
        "router": router,
    }
    return {
        "schema": 0,
        "name": "math-pack",
        "version": "1.2.0rc1",
        "summary": "Summen, 和, ∑ – of three digits",
        "license": "apache-2.0",
        "requires": ["acme/chat-pack>=1,<2"],
        "conflicts": ["acme/other-pack"],
        "skills": {"tags": ["math", "数学"], "prompts": ["What is 12 + 30?\nAnswer:"]},
        "variants": [variant, {**variant, "base": {**base, "fingerprint": OTHER_BASE}, "files": [], "router": None}],
        "provenance": {"tool": "skillhub 0.1.0", "tuned": "acme/small-math"},
        "signer": {"algorithm": "ed25519", "public_key": "AAAA"},
    }


SHA256S = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.from_regex(r"[a-z0-9_][a-z0-9._]{0,20}[a-z0-9_]", fullmatch=True).filter(
    lambda name: ".." not in name and not name.endswith(".git")
)
VERSIONS = st.builds(
    lambda release, suffix: ".".join(map(str, release)) + suffix,
    st.lists(st.integers(0, 999), min_size=1, max_size=4),
    st.sampled_from(["", "a1", "b2", "rc3", ".post1", ".dev4", "rc1.post2.dev3"]),
)
LINES = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=30)
TEXTS = st.text(st.characters(exclude_categories=("C",)) | st.sampled_from("\n\t"), max_size=30)
COUNTS = st.integers(0, 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
REQUIREMENTS = st.builds("{}/{}{}".format, NAMES, NAMES, st.sampled_from(["", ">=1", "==1.0.*,!=1.0.3", "~=2.1"]))

_TENSORS = st.builds(
    TensorEntry,
    shape=st.lists(COUNTS, max_size=4),
    change=st.sampled_from(["delta", "added", "removed"]),
    codecs=st.lists(LINES, max_size=3),
    bytes=COUNTS,
    relative_error=NUMBERS,
    max_error=NUMBERS,
    digest=st.none() | SHA256S,
)
_BASES = st.builds(
    BaseInfo,
    fingerprint=SHA256S.map("skb1:{}".format),
    repo=st.none() | LINES,
    parameters=COUNTS,
    tokenizer=st.none() | SHA256S,
    vocabulary_size=st.none() | COUNTS,
    files=st.lists(st.dictionaries(LINES, SHA256S, max_size=2), max_size=2),
)
_EVALUATIONS = st.builds(
    Evaluation, task=LINES, metric=LINES, base=NUMBERS, tuned=st.none() | NUMBERS, pack=NUMBERS, rows=COUNTS
)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    """A variant whose files are in its folder, with or without a routing card."""
    base = draw(_BASES)
    folder = variant_folder(base.fingerprint)
    paths = [f"{folder}/{name}" for name in ("router.safetensors", "delta-00001.safetensors", "sub/é.safetensors")]
    files = [FileEntry(path=path, size=draw(COUNTS), sha256=draw(SHA256S)) for path in paths]
    card = RouterInfo(path=paths[0], layer=draw(COUNTS), pooling="mean", rank=8, threshold=draw(NUMBERS))
    codec = CodecInfo(
        preset="near",
        bits_per_weight=draw(NUMBERS),
        tensors=draw(st.dictionaries(LINES, _TENSORS, max_size=3)),
        calibrated=draw(st.sampled_from([UNSET, False, True])),
    )
    evaluation = draw(st.lists(_EVALUATIONS, max_size=2))
    router = draw(st.sampled_from([None, card]))
    return Variant(base=base, codec=codec, files=files, evaluation=evaluation, router=router)


MANIFESTS = st.builds(
    Manifest,
    schema=st.just(MANIFEST_SCHEMA),
    name=NAMES,
    version=VERSIONS,
    summary=TEXTS,
    license=st.none() | LINES,
    requires=st.lists(REQUIREMENTS, max_size=3),
    conflicts=st.lists(REQUIREMENTS, max_size=2),
    skills=st.builds(Skill, tags=st.lists(LINES, max_size=3), prompts=st.lists(TEXTS, max_size=3)),
    variants=st.lists(variants(), max_size=2, unique_by=lambda variant: variant.folder),
    provenance=st.dictionaries(LINES, TEXTS, max_size=3),
)
