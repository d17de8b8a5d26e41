"""Published recipes: what their papers say, packed, and decoded by our codecs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillhub.codecs import decode, sign
from skillhub.codecs.factorization import factorize
from skillhub.codecs.lowrank import matrix_shape, read_components
from skillhub.errors import UsageError
from skillhub.recipes import RECIPES, choose_recipe, choosing, deltacome, graftllm, svdlora
from skillhub.recipes.components import Band, compress_bands, count_bytes, cut_bands
from skillhub.recipes.encoding import Compressed
from tests.codec_examples import words

ATTENTION, MLP, EMBEDDING = "layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight", "embed_tokens.weight"


def decaying(rows: int, columns: int, seed: int = 0, power: float = 0.7) -> torch.Tensor:
    """A random matrix whose singular values fall like those of a fine-tune."""
    generator = torch.Generator().manual_seed(seed)
    u, s, v = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    return 1e-3 * (u * torch.arange(1, len(s) + 1) ** -power) @ v


def second_moment(columns: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    inputs *= torch.logspace(0.5, -0.5, columns)
    return inputs.T @ inputs / len(inputs)


def relative_error(delta: torch.Tensor, compressed: Compressed, moment: torch.Tensor | None = None) -> float:
    error = (decode(compressed.encoded) - delta).double()
    moment = torch.eye(delta.shape[1]) if moment is None else moment
    return float(
        torch.trace(error @ moment.double() @ error.T)
        / torch.trace(delta.double() @ moment.double() @ delta.double().T)
    )


def test_delta_come_has_the_bands_of_its_paper() -> None:
    assert deltacome.choose_bands(4096, 4096) == [Band(2, 8), Band(32, 3), Band(968, 2)]
    bands = deltacome.choose_bands(11008, 4096)
    assert bands[:2] == [Band(2, 8), Band(32, 3)] and bands[2].components == pytest.approx(1428, rel=0.01)


@given(st.integers(2, 3000), st.integers(2, 3000))
def test_delta_come_stays_within_one_bit_a_weight(rows: int, columns: int) -> None:
    bands = deltacome.choose_bands(rows, columns)
    assert 1 <= sum(band.components for band in bands) <= min(rows, columns)
    spent = sum(band.components * band.bits for band in bands) * (rows + columns)
    assert spent <= rows * columns or bands == [Band(1, 2)]
    if sum(band.components for band in bands) < min(rows, columns) and len(bands) == 3:
        assert spent + 2 * (rows + columns) > rows * columns


def test_a_rank_may_be_asked_for() -> None:
    assert deltacome.choose_bands(576, 1536, deltacome.Options(rank=214)) == [Band(2, 8), Band(32, 3), Band(180, 2)]
    assert deltacome.choose_bands(10, 50, deltacome.Options(rank=214)) == [Band(2, 8), Band(8, 3)]
    assert cut_bands([Band(2, 8), Band(32, 3)], 1) == [Band(1, 8)]


def test_stored_components_are_the_quantized_ones() -> None:
    delta = decaying(40, 60)
    compressed = compress_bands("w", delta, [Band(2, 8), Band(5, 3), Band(20, 2)], None)
    (part,) = compressed.encoded.parts
    stored = read_components(part, 40, 60)
    peaks = np.maximum(np.abs(stored.left).max(axis=1), np.abs(stored.right).max(axis=1))
    assert (
        stored.left.shape == (27, 40)
        and (peaks[:2] <= 255).all()
        and (peaks[2:7] <= 7).all()
        and (peaks[7:] <= 3).all()
    )
    assert (stored.left % 2 == 1).all() and (stored.right % 2 == 1).all()


def test_published_bytes_are_those_of_packed_codes_and_half_precision_scales() -> None:
    bands = [Band(1, 8), Band(3, 3), Band(7, 2)]
    bits = sum(len(format(0, f"0{band.bits}b")) for band in bands for _ in range(band.components * (40 + 60)))
    assert count_bytes(bands, 40, 60) == -(-bits // 8) + 11 * 2 * 2
    assert RECIPES["delta-come"]("w", decaying(256, 256), None).published_bytes <= 256 * 256 // 8 + 256 * 4


def test_our_container_is_hardly_larger_than_the_published_form_of_small_matrices() -> None:
    delta = decaying(400, 512)
    for recipe in ("delta-come", "graftllm", "bitdelta", "svd-lora"):
        compressed = RECIPES[recipe](MLP, delta, None)
        assert compressed.encoded.nbytes < 1.05 * compressed.published_bytes, recipe


def test_few_strong_components_come_back() -> None:
    delta = decaying(50, 70)
    factors = factorize("w", delta, 2)
    strong = torch.from_numpy((factors.left.T * factors.values) @ factors.right).float()
    assert relative_error(strong, RECIPES["delta-come"]("w", strong, None)) < 1e-4


def test_calibration_lowers_the_error_that_inputs_see() -> None:
    delta, moment = decaying(96, 128), second_moment(128)
    everything = [Band(2, 8), Band(32, 3), Band(62, 2)]  # nothing is truncated: all error is quantization's
    rounded, calibrated = (compress_bands(MLP, delta, everything, seen) for seen in (None, moment))
    assert calibrated.published_bytes == rounded.published_bytes
    assert relative_error(delta, calibrated, moment) < 0.7 * relative_error(delta, rounded, moment)
    for recipe in ("delta-come", "graftllm"):
        errors = [relative_error(delta, RECIPES[recipe](MLP, delta, seen), moment) for seen in (None, moment)]
        assert errors[1] < errors[0]


def test_a_second_moment_of_other_inputs_is_refused() -> None:
    for recipe in ("delta-come", "graftllm"):
        with pytest.raises(ValueError, match="128 inputs"):
            RECIPES[recipe](MLP, decaying(96, 128), second_moment(96))


def test_more_bits_leave_less_error() -> None:
    delta = decaying(96, 128)
    errors = [
        relative_error(delta, deltacome.compress(MLP, delta, None, deltacome.Options(bits_per_weight=bits)))
        for bits in (0.25, 0.5, 1.0, 2.0)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_graftllm_has_the_bands_of_its_code() -> None:
    assert graftllm.choose_bands(4096, 1000) == [Band(20, 8), Band(180, 4), Band(800, 2)]
    assert graftllm.choose_bands(4096, 1400) == [Band(20, 8), Band(180, 4), Band(1200, 2)]
    assert graftllm.choose_bands(64, 1) == [Band(1, 8)]


def test_graftllm_gives_attention_a_fixed_rank_and_mlps_one_by_energy() -> None:
    ranks = {}
    for name in (ATTENTION, MLP):
        for power in (0.5, 2.0):
            (part,) = RECIPES["graftllm"](name, decaying(64, 80, power=power), None).encoded.parts
            ranks[name, power] = part.config["rank"]
    assert ranks[ATTENTION, 0.5] == ranks[ATTENTION, 2.0] == round(1000 / 4096 * 64)
    for power in (0.5, 2.0):
        squares = torch.linalg.svdvals(decaying(64, 80, power=power).double()).square()
        held = squares.cumsum(0) / squares.sum()
        assert ranks[MLP, power] == int((held < 0.9).sum()) + 1


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3, 1.0])
def test_graftllm_prunes_the_smallest_deltas_of_an_embedding(alpha: float) -> None:
    delta = decaying(200, 16)
    compressed = graftllm.compress(EMBEDDING, delta, None, graftllm.Options(embedding_share=alpha))
    decoded = decode(compressed.encoded)
    count = round(alpha * delta.numel())
    kept = decoded != 0
    assert int(kept.sum()) == count and torch.equal(decoded[kept], delta[kept])
    if 0 < count < delta.numel():
        assert delta[kept].abs().min() >= delta[~kept].abs().max()
    assert compressed.published_bytes == 2 * count + min(delta.numel() // 8, 4 * count)


def test_of_equal_deltas_the_first_are_kept() -> None:
    delta = torch.tensor([[1.0, -2.0, 2.0], [2.0, -1.0, 0.0], [0.0, 3.0, 2.0]])
    pruned = graftllm.prune(delta, 4 / 9)
    expected = torch.tensor([[0.0, -2.0, 2.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    assert torch.equal(decode(pruned.encoded), expected)


def test_bitdelta_is_the_sign_codec_on_matrices() -> None:
    delta = decaying(30, 44)
    compressed = RECIPES["bitdelta"](MLP, delta, None)
    assert [part.codec for part in compressed.encoded.parts] == [sign.ID]
    assert compressed.published_bytes == 30 * 44 // 8 + 30 * 2


@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_svd_lora_is_the_truncated_decomposition_in_half_precision(magnitude: float) -> None:
    delta = decaying(60, 80) * magnitude
    compressed = svdlora.compress(MLP, delta, None, svdlora.Options(rank=7))
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    best = (u[:, :7] * s[:7]) @ v[:7]
    assert float((decode(compressed.encoded) - best).norm() / best.norm()) < 1e-3
    assert compressed.published_bytes == 2 * 7 * (60 + 80)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 7), max_size=4),
    st.sampled_from(["random", "zeros", "nan", "huge", "tiny"]),
    st.sampled_from([ATTENTION, MLP, EMBEDDING, "norm.weight"]),
)
def test_every_tensor_has_an_answer(recipe: str, shape: list[int], kind: str, name: str) -> None:
    factor = {"random": 1.0, "zeros": 0.0, "nan": float("nan"), "huge": 1e35, "tiny": 1e-35}[kind]
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * factor + 0.0
    compressed = RECIPES[recipe](name, delta, None)
    decoded = decode(compressed.encoded)
    assert decoded.shape == delta.shape and 0 <= compressed.published_bytes <= 4 * delta.numel() + 64
    if kind != "random" or delta.dim() < 2 or min(matrix_shape(tuple(shape))) < 2:
        assert words(decoded) == words(delta)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_convolutions_and_other_layouts_are_taken(recipe: str) -> None:
    delta = decaying(24, 60)
    convolution = delta.reshape(24, 5, 12)
    whole = decode(RECIPES[recipe](MLP, delta, None).encoded)
    assert torch.equal(decode(RECIPES[recipe](MLP, convolution, None).encoded), whole.reshape(24, 5, 12))
    transposed = decode(RECIPES[recipe](MLP, delta.T.contiguous().T, None).encoded)
    assert torch.allclose(transposed, whole, atol=1e-3 * float(delta.abs().max()))


def test_every_recipe_can_be_chosen() -> None:
    assert set(choosing.NAMES) == set(RECIPES)
    for name, recipe in RECIPES.items():
        chosen, delta = choose_recipe(name), decaying(24, 60)
        assert torch.equal(decode(chosen.compress(MLP, delta, None).encoded), decode(recipe(MLP, delta, None).encoded))
        assert chosen.told == {}


def test_options_are_numbers_or_their_texts() -> None:
    delta = decaying(60, 80)
    (part,) = choose_recipe("svd-lora", {"rank": "7"}).compress(MLP, delta, None).encoded.parts
    assert part.config["rank"] == 7
    chosen = choose_recipe("graftllm", {"mlp-energy": "0.5", "embedding_share": 0})
    assert chosen.told == {"mlp_energy": 0.5, "embedding_share": 0.0}
    assert not decode(chosen.compress(EMBEDDING, delta, None).encoded).any()
    expected = graftllm.compress(MLP, delta, None, graftllm.Options(mlp_energy=0.5))
    assert torch.equal(decode(chosen.compress(MLP, delta, None).encoded), decode(expected.encoded))


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("svd-lora", {"rank": 0}, "rank of the recipe svd-lora cannot be 0", "a whole number from 1 to 4096"),
        ("svd-lora", {"rank": "2.5"}, "cannot be 2.5", "a whole number"),
        ("delta-come", {"bits-per-weight": "nan"}, "bits-per-weight of the recipe delta-come cannot be nan", "above 0"),
        ("graftllm", {"mlp-energy": 0}, "mlp-energy of the recipe graftllm cannot be 0", "above 0 to 1"),
        ("graftllm", {"embedding-share": "much"}, "cannot be much", "a number from 0 to 1"),
        ("bitdelta", {"rank": 3}, "bitdelta has no option 'rank'", "no options"),
        ("graftllm", {"alpha": 3}, "no option 'alpha'", "embedding-share, mlp-energy, attention-rank"),
    ],
)
def test_options_that_will_not_do_are_refused(name: str, options: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose_recipe(name, options)
    assert hint in str(caught.value.hint)


def test_embeddings_are_compressed_by_those_recipes_whose_papers_do() -> None:
    delta = decaying(60, 80)
    for name in ("embed_tokens.weight", "lm_head.weight", "embeddings.position_embeddings.weight", "wpe.weight"):
        kept = {
            recipe
            for recipe in RECIPES
            if torch.equal(decode(choose_recipe(recipe).compress(name, delta, None).encoded), delta)
        }
        assert kept == {"bitdelta", "delta-come"}, name
