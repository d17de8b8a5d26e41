"""Calibration: what is noted of a fine-tune's layers, beside autograd; and packs that are better for it."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
import torch

import skillhub
from skillhub.authorfile import AuthorFile
from skillhub.calibration import Calibration, calibrate, distillation, recording
from skillhub.calibration.moments import LayerRecord
from skillhub.calibration.recording import ROOM
from skillhub.calibration.texts import BATCH_TOKENS, Row, answered_rows, batches, padded, thinned
from skillhub.checkpoints import open_checkpoint
from skillhub.deltas import Delta
from skillhub.devices import device_for
from skillhub.errors import DiskError, UsageError
from skillhub.manifest import Skill
from skillhub.packdeltas import open_delta
from skillhub.packer import pack
from skillhub.packs import Pack
from tests.routing_examples import add_byte_tokenizer, save_base, sums, tuned
from tests.support.tiny_models import KINDS, rewrite, save_model, tune


def test_batches_hold_each_row_once_and_few_tokens() -> None:
    rows = [Row(tuple(range(length)), 1) for length in (3, 700, 90, 5, 640, 91, 2, 200)]
    groups = batches(rows)
    assert sorted(len(row.tokens) for group in groups for row in group) == sorted(len(row.tokens) for row in rows)
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(row.tokens) for row in group) <= BATCH_TOKENS


def test_padding_is_of_either_side() -> None:
    ids, mask = padded([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    ids, mask = padded([[5, 6, 7], [8]], 0, left=True)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_texts_are_thinned_evenly() -> None:
    assert thinned([str(number) for number in range(10)], 4) == ["0", "2", "5", "7"]
    assert thinned(["a", "b"], 4) == ["a", "b"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def fine_tune(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(base, tmp_path_factory.mktemp("tuned") / "model", seed=3)


@pytest.fixture(scope="module")
def calibrated(base: Path, fine_tune: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(fine_tune, base, sums(32), tmp_path_factory.mktemp("records"))


def test_what_goes_into_a_layer_is_noted_where_something_is_read(
    base: Path, fine_tune: Path, calibrated: Calibration
) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(fine_tune)
    model = model.to(device_for(model, room=ROOM))  # sampled answers differ between devices
    rows = answered_rows(model, transformers.AutoTokenizer.from_pretrained(base), sums(32))
    assert len(rows) == len(calibrated.rows) and {row.weight for row in rows} == {0.3, 1.0}
    seen: list[torch.Tensor] = []
    module = model.model.layers[7].mlp.down_proj
    with module.register_forward_hook(lambda _, args, __: seen.append(args[0])), torch.no_grad():
        for row in rows:  # one by one: no padding
            model(input_ids=torch.tensor([row.tokens], device=model.device))
    expected = torch.cat([one[0, 1:].cpu() for one in seen])  # the first position is left out
    record = calibrated.layers["layers.7.mlp.down_proj.weight"]
    assert (record.rows, record.columns, record.positions) == (16, 24, len(expected))
    stored = torch.from_file(str(record.inputs), size=expected.numel(), dtype=torch.bfloat16).reshape(expected.shape)
    ordered = [one.float().square().sum(1).sort().values for one in (stored, expected)]
    torch.testing.assert_close(*ordered, rtol=0.02, atol=0.02)
    assert calibrated.predictions == sum(len(row.tokens) - row.answer for row in rows if row.weight == 1)


def test_the_fisher_information_predicts_the_divergence_of_small_errors(
    base: Path, fine_tune: Path, calibrated: Calibration
) -> None:
    """Noise in a layer: the metric's energy is twice the divergence a predicted token, by what is taken as independent and drawn."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(fine_tune, dtype=torch.float32)
    rows = answered_rows(model, transformers.AutoTokenizer.from_pretrained(base), sums(32))

    def predictions() -> list[torch.Tensor]:
        with torch.no_grad():
            logits = ((row, model(input_ids=torch.tensor([row.tokens])).logits[0]) for row in rows)
            return [one[row.answer - 1 : -1].double().log_softmax(-1) for row, one in logits]

    exact = predictions()
    layer, name = model.model.layers[5].self_attn.v_proj, "layers.5.self_attn.v_proj.weight"
    error = 0.01 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    layer.weight.data += error
    pairs = zip(rows, exact, predictions(), strict=True)
    divergence = sum(row.weight**2 * float((one.exp() * (one - other)).sum()) for row, one, other in pairs)
    predicted = calibrated.metrics(name, tuple(error.shape)).energy(error) / 2
    assert predicted == pytest.approx(divergence / calibrated.predictions, rel=0.5)


def test_tensors_that_were_not_seen_count_alike(calibrated: Calibration) -> None:
    metrics = calibrated.metrics("elsewhere.weight", (5, 2, 3))
    error = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert metrics.energy(error) == pytest.approx(calibrated.usual_weight * float(error.square().sum()), rel=1e-4)
    few = LayerRecord(Path("none"), Path("none"), 5, 6, 3, (3,), 1.0)
    scarce = Calibration({"a": few}, {}, 1.0, (), True)
    assert scarce.metrics("a", (5, 6)).energy(error) == pytest.approx(float(error.square().sum()), rel=1e-4)
    assert "embed_tokens.weight" in calibrated.vocabularies


def test_calibrating_again_gives_the_same_and_leaves_the_random_state(
    base: Path, fine_tune: Path, calibrated: Calibration, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    again = calibrate(fine_tune, base, sums(32), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    for name, record in again.layers.items():
        assert record.gradients.read_bytes() == calibrated.layers[name].gradients.read_bytes()


def test_a_pack_with_prompts_is_calibrated(base: Path, fine_tune: Path, tmp_path: Path) -> None:
    metadata = AuthorFile(name="sums", version="1.0")
    plain = pack(fine_tune, base, tmp_path / "plain", metadata=metadata)
    told: dict[bool, set[str]] = {True: set(), False: set()}
    built = {
        calibrates: pack(
            fine_tune,
            base,
            tmp_path / str(calibrates),
            metadata=metadata,
            prompts=sums(32),
            calibrate=calibrates,
            progress=lambda what, *_, calibrates=calibrates: told[calibrates].add(what),
        )
        for calibrates in told
    }
    assert told[True] - told[False] == {"calibration texts", "fitting scales"}
    digests = [{name: one.entry(name).digest for name in one.names} for one in map(open_delta, (plain, built[False]))]
    assert digests[0] == digests[1] and open_delta(built[True]).names == list(digests[0])
    assert all(one.only_variant().router is not None for one in built.values())
    assert not list(tmp_path.rglob("*.inputs"))


def test_a_full_disk_ends_calibration_in_a_sentence(
    base: Path, fine_tune: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: torch.Tensor) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording, "_stored", fill)
    with pytest.raises(DiskError, match="no room"):
        calibrate(fine_tune, base, sums(16), tmp_path)


def test_gptq_is_given_the_second_moment_of_what_a_layer_reads(calibrated: Calibration) -> None:
    name = "layers.7.mlp.down_proj.weight"
    record = calibrated.layers[name]
    inputs = torch.from_file(str(record.inputs), size=record.positions * 24, dtype=torch.bfloat16).double()
    expected = torch.einsum("pi,pj->ij", *[inputs.reshape(-1, 24)] * 2) / record.positions
    found = calibrated.second_moment(name, (16, 24))
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert calibrated.second_moment(name, (24, 16)) is None
    assert calibrated.second_moment("embed_tokens.weight", (261, 16)) is None


@pytest.mark.parametrize("preset", ["delta-come", "svd-lora"])
def test_prompts_calibrate_the_recipes_that_take_them(
    preset: str, base: Path, fine_tune: Path, calibrated: Calibration, tmp_path: Path
) -> None:
    metadata, told = AuthorFile(name="sums", version="1.0"), set[str]()
    packs = [
        pack(
            fine_tune,
            base,
            tmp_path / str(number),
            metadata=metadata,
            preset=preset,
            recipe_options={"rank": 16},  # nothing is truncated: all error is quantization's
            prompts=prompts,
            progress=lambda what, *_: told.add(what),
        )
        for number, prompts in enumerate([None, sums(32)])
    ]
    delta = Delta(open_checkpoint(base), open_checkpoint(fine_tune))
    names = [name for name in calibrated.layers if name.endswith("down_proj.weight")]

    def seen_error(built: Pack) -> float:
        decoded, total = open_delta(built), 0.0
        for name in names:
            error = decoded.decode(name) - delta.tensor(name)
            moment = calibrated.second_moment(name, tuple(error.shape))
            assert moment is not None
            total += float(torch.trace(error @ moment @ error.T))
        return total

    assert ("calibration texts" in told) == (preset == "delta-come")
    plain, informed = map(seen_error, packs)
    assert (informed < 0.9 * plain) if preset == "delta-come" else (informed == plain)


def test_a_fine_tune_that_cannot_be_loaded_is_a_clear_error(base: Path, fine_tune: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(fine_tune, broken)
    (broken / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UsageError, match="which calibration needs"):
        pack(broken, base, tmp_path / "pack", metadata=AuthorFile(name="a", version="1"), prompts=sums(32))
    assert not (tmp_path / "pack").exists()


def test_a_language_model_that_also_takes_images_is_calibrated_as_one(tmp_path: Path) -> None:
    text = {**KINDS["gemma_images"][2]["text_config"], "vocab_size": 261, "max_position_embeddings": 256}
    base = save_model("gemma_images", tmp_path / "base", text_config=text)
    add_byte_tokenizer(base)
    found = calibrate(tune(base, tmp_path / "tuned"), base, sums(16), tmp_path)
    assert found.generates and found.predictions > 16
    assert sum("language_model" in name for name, layer in found.layers.items() if layer.trace > 0) == 14


def test_an_encoder_with_a_decoder_is_packed_without_calibration_only(tmp_path: Path) -> None:
    base = save_model("t5", tmp_path / "base", vocab_size=261)
    add_byte_tokenizer(base)
    tuned = tune(base, tmp_path / "tuned")
    metadata = AuthorFile(name="a", version="1")
    with pytest.raises(UsageError, match="an encoder with a decoder") as caught:
        pack(tuned, base, tmp_path / "pack", metadata=metadata, prompts=sums(16))
    assert "calibrate=False" in caught.value.hint and not (tmp_path / "pack").exists()
    pack(tuned, base, tmp_path / "pack", metadata=metadata, prompts=sums(16), calibrate=False)


@pytest.mark.parametrize("kind", ["tied", "bert"])
def test_a_tokenizer_with_more_tokens_than_the_model_reads_no_prompts(kind: str, tmp_path: Path) -> None:
    base = save_model(kind, tmp_path / "base", vocab_size=200, max_position_embeddings=256)
    add_byte_tokenizer(base)
    fine_tune, out, notices = tune(base, tmp_path / "tuned"), tmp_path / "pack", list[str]()
    metadata = AuthorFile(name="a", version="1")
    for calibrates in (True, False):  # the card is made first
        with pytest.raises(UsageError, match=r"has a token 2\d\d, and the model embeds 200 tokens only") as caught:
            pack(fine_tune, base, out, metadata=metadata, prompts=sums(32), calibrate=calibrates)
        assert "resize_token_embeddings" in caught.value.hint and not list(tmp_path.glob("*pack*"))
    with pytest.raises(UsageError, match="embeds 200 tokens only"):
        calibrate(fine_tune, base, sums(32), tmp_path)
    metadata = AuthorFile(name="a", version="1", skills=Skill(prompts=sums(32)))
    built = pack(fine_tune, base, out, metadata=metadata, notice=notices.append)
    variant = built.only_variant()
    assert variant.router is None and variant.codec.calibrated is False and len(notices) == 2
    assert all("embeds 200 tokens only" in one for one in notices)


def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put what is no number into a weight that every token meets."""
    next(tensor for name, tensor in sorted(tensors.items()) if tensor.dim() == 2 and "layer" in name)[0, 0] = math.nan
    return tensors


@pytest.mark.parametrize("kind", ["tied", "bert"])
def test_a_fine_tune_that_says_no_numbers_is_packed_without_calibration_only(kind: str, tmp_path: Path) -> None:
    base = save_model(kind, tmp_path / "base", vocab_size=261, max_position_embeddings=256)
    add_byte_tokenizer(base)
    broken = rewrite(tune(base, tmp_path / "whole"), tmp_path / "broken", spoil)
    metadata = AuthorFile(name="a", version="1")
    with pytest.raises(UsageError, match="is infinite or no number") as caught:
        pack(broken, base, tmp_path / "pack", metadata=metadata, prompts=sums(32))
    assert "calibrate=False" in caught.value.hint and not (tmp_path / "pack").exists()
    built = pack(broken, base, tmp_path / "pack", metadata=metadata, prompts=sums(32), calibrate=False)
    assert built.only_variant().codec.calibrated is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_lossless_pack_restores_every_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_base(tmp_path / "base")
    fine_tune = tuned(base, tmp_path / "tuned", seed=4)
    for folder in (base, fine_tune):
        file = folder / "model.safetensors"
        save_file({name: one.to(dtype) for name, one in load_file(file).items()}, file, metadata={"format": "pt"})
    built = pack(fine_tune, base, tmp_path / "pack", metadata=AuthorFile(name="a", version="1"), preset="lossless")
    assert built.only_variant().codec.preset == "lossless"
    assert all(entry.max_error == 0 for entry in built.only_variant().codec.tensors.values())
    skillhub.fuse(base, [built], tmp_path / "fused")
    restored, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "fused", fine_tune))
    assert restored.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(restored[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_prompts_that_begin_with_a_special_token_are_asked_as_they_stand(base: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    framed, plain = "<user>1 + 1<end><bot>", "1 + 1"
    starts = [tokenizer.decode(answered_rows(model, tokenizer, [prompt])[0].tokens) for prompt in (framed, plain)]
    assert starts[0].startswith("<user>1 + 1<end><bot>")
    assert starts[1].startswith("<user>be kind<end><user>1 + 1<end><bot>")


def test_where_memory_lacks_scales_are_not_fitted_and_that_is_told(
    base: Path, fine_tune: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "ROOM", 1e12)
    told: list[str] = []
    metadata = AuthorFile(name="made", version="1.0")
    made = pack(fine_tune, base, tmp_path / "made", metadata=metadata, prompts=sums(16), notice=told.append)
    assert any("were not fitted" in one and "GB are left" in one for one in told)
    assert made.only_variant().codec.calibrated is True


def test_a_run_that_goes_on_with_more_memory_fits_scales_after_all(
    base: Path, fine_tune: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, told, steps = AuthorFile(name="made", version="1.0"), list[str](), set[str]()

    def stop(what: str, *_: int) -> None:
        if what == "Encoding" and any("were not fitted" in one for one in told):
            raise KeyboardInterrupt

    prompts = sums(16)
    whole = pack(fine_tune, base, tmp_path / "whole", metadata=metadata, prompts=prompts)
    with monkeypatch.context() as scarce, pytest.raises(KeyboardInterrupt):
        scarce.setattr(distillation, "ROOM", 1e12)
        pack(fine_tune, base, tmp_path / "made", metadata=metadata, prompts=prompts, notice=told.append, progress=stop)
    made = pack(
        fine_tune,
        base,
        tmp_path / "made",
        metadata=metadata,
        prompts=prompts,
        notice=told.append,
        progress=lambda what, *_: steps.add(what),
    )
    assert "Going on with an interrupted run" in told[-2] + told[-1] and "fitting scales" in steps
    assert made.digest == whole.digest
