"""Grafting: packs onto a model in memory, changing how much they count, and taking them out again, bit for bit.

A grafted model carries the recipe and the original values of the tensors that packs changed. Every change, adding a pack, weighing
it otherwise or taking it out, is computed from those originals and all packs that count then, never by adding to or subtracting
from what is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from skillhub.compose.declarations import repository_of, tell_declared_bases
from skillhub.compose.graftstates import GraftedPack, Grafts, apply, grafts_of, state_of
from skillhub.compose.layouts import graft_layout, grafted_layout, plain_model
from skillhub.compose.openings import check_trainable, open_grafts, open_more, open_trained
from skillhub.compose.packsources import EnvironmentSource, PackSource
from skillhub.compose.recipes import Recipe, make_recipe
from skillhub.compose.routed.changes import routed_packs, switch_routed, ungraft_routed, weigh_routed
from skillhub.compose.routed.grafting import graft_routed
from skillhub.compose.routed.modes import check_mode, refuse_routed
from skillhub.compose.routed.states import replace_routing, routing_of
from skillhub.compose.schedules import Amount
from skillhub.compose.selection import grafted_digest, reweighed
from skillhub.compose.verification import fingerprint_of
from skillhub.errors import UsageError
from skillhub.progress import Notice, Progress


def graft(
    model: nn.Module,
    packs: Sequence[PackSource],
    *,
    mode: str = "fused",
    method: str = "linear",
    weights: Sequence[Amount] | None = None,
    densities: Sequence[Amount] | None = None,
    options: Mapping[str, Amount] | None = None,
    seed: int = 0,
    verify: str = "auto",
    trust_base: bool = False,
    rounding: str = "auto",
    trainable: bool = False,
    router: Any = "auto",
    executor: str = "auto",
    memory: str | int = "auto",
    environment: EnvironmentSource | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> nn.Module:
    """Graft packs onto a model of transformers; on an error the model stays exactly as it was.

    Every tensor becomes base + merged delta, summed in fp32 and rounded once into the parameter's dtype. Parameters stay the same
    objects: ties, views, ``requires_grad``, training mode and device do not change, and untouched tensors are not written. Packs may
    be added by further calls with the same method; the result depends on the set of packs and weights alone. The originals of the
    changed tensors are kept in CPU memory; while packs are added to a grafted model, so are the present values of what changes.

    A quantized model takes packs too: what they add to quantized linear layers runs beside those in floating point (as two thin
    products where it is of low rank), all else is grafted as ever. It is known by the folder that it was loaded from.

    A model that is spread over devices is grafted where its parts are, also those that accelerate keeps in CPU memory; one that is
    offloaded to disk is refused.

    What else one does with models:

    - ``save_pretrained`` and ``push_to_hub`` write the grafted weights (of a quantized model they are refused, as they would lack
      the packs); a deep copy is a grafted model of its own.
    - A model that ``torch.compile`` returned is grafted like the model in it, before or after it ran; nothing is compiled anew.
    - Training (by the Trainer or otherwise) changes the grafted weights as it would any. After it packs can be added, weighed or
      taken out no more, which would drop what was learned: that is refused; ``ungraft(model, force=True)`` drops it.
    - FSDP and ``fully_shard`` take a grafted model. One that is sharded already is refused, and so is taking packs out of it.

    Args:
        model: the base model the packs were made for.
        packs: installed names, folders or opened packs, adapters of peft, and whole fine-tuned checkpoints (a folder, or
            ``checkpoint:repo[@revision]``), whose delta is their difference to the model as it was before packs; at least one.
        mode: ``fused``, which is what the above says; or ``routed``: each row of a batch gets one of the packs, or none. See
            :mod:`skillhub.compose.routed`.
        method: name of a merge method, one of ``skillhub.compose.methods.METHODS``.
        weights: one per pack: a number, a list of numbers over the layers, or patterns of names with either; 1 by default.
        densities: one per pack, for methods that drop elements; 1 by default.
        options: what else the method is told, by name; ``skillhub.compose.methods`` has them.
        seed: of the random masks of methods that drop elements at random.
        verify: ``full`` hashes all weights of the model, ``sample`` some; ``auto`` samples over 8 GB. The packs' files are hashed too;
            with ``full`` every tensor that is decoded of them is, instead.
        trust_base: skip hashing (names and shapes are still checked) when you know that the model is the packs' base.
        rounding: ``auto`` (to nearest where the packs hold a tensor exactly, else stochastic, seeded by packs and tensor name),
            ``nearest`` or ``stochastic``.
        trainable: go on to train the one pack: what it stores as low-rank factors of linear layers becomes fp32 parameters beside
            those layers (``_skillhub_left``, ``_skillhub_right``), all other parameters stop requiring gradients. Then
            ``skillhub.pack_grafted`` packs what was learned. Checkpoints of such a model hold base and factors side by side.
        router: for ``routed``, as :func:`skillhub.compose.routed.graft_routed` takes it.
        executor: likewise.
        memory: likewise.
        environment: where names are looked up: an environment or its folder; the per-user environments by default.
        progress: called with (``tensors``, done, all).
        notice: told what could not be verified; by default that is logged.

    Returns:
        The same module.

    Raises:
        UsageError: packs, weights or methods do not go together, or the model cannot take them in memory.
        WrongBaseError: the model is not the packs' base; nothing was touched.
        NotFoundError: a pack does not exist.
        IntegrityError: a pack's file is damaged.
    """
    only_fused = {"method": method != "linear", "densities": densities, "options": options, "seed": seed}
    only_routed = {"router": router != "auto", "executor": executor != "auto", "memory": memory != "auto"}
    check_mode(mode, fused={**only_fused, "trainable": trainable}, routed=only_routed)
    if mode == "routed":
        return graft_routed(
            model,
            packs,
            router=router,
            weights=weights,
            rounding=rounding,
            executor=executor,
            memory=memory,
            verify=verify,
            trust_base=trust_base,
            environment=environment,
            progress=progress,
            notice=notice,
        )
    base = plain_model(model)
    refuse_routed(base)
    layout, state = graft_layout(base), _refuse_trained(state_of(base))
    added = make_recipe(
        packs,
        method=method,
        weights=weights,
        densities=densities,
        options=options,
        seed=seed,
        rounding=rounding,
        environment=environment,
        fingerprint=lambda: fingerprint_of(base, layout, state.originals if state else {}),
    )
    if trainable:
        check_trainable(added, state)
    wanted, contributions = open_more(base, layout, added, verify=verify, trust_base=trust_base)
    if trainable:
        wanted, layout = open_trained(base, layout, wanted, contributions[0])
    tell_declared_bases(added, repository_of(base), notice)
    apply(base, layout, wanted, contributions, progress)
    return model


def ungraft(
    model: nn.Module, pack: PackSource | None = None, *, force: bool = False, progress: Progress | None = None
) -> nn.Module:
    """Take packs out of a model: the bytes of before come back.

    Args:
        model: a model with grafts.
        pack: the one to take out (name, folder or opened pack); what remains is computed from the originals again. None takes out
            all, for which no pack is read.
        force: drop also what was trained or written into the tensors that packs changed.
        progress: called with (``tensors``, done, all); only the tensors that change count.

    Returns:
        The same module.

    Raises:
        UsageError: no pack is grafted, a name means several, the method cannot do with the packs that would remain, or the
            weights were changed since packs were grafted.
        NotFoundError: this pack is not grafted.
        IntegrityError: a remaining pack's file is damaged; the model stays as it was.
    """
    if routing_of(model):
        return ungraft_routed(model, pack, progress=progress)
    state = grafts_of(plain_model(model))
    recipe = Recipe(()) if pack is None else state.recipe.without(grafted_digest(state.recipe, pack))
    return _change(model, replace(state, recipe=recipe), progress, force=force)


def set_weights(
    model: nn.Module, weights: Mapping[PackSource, Amount], *, progress: Progress | None = None
) -> nn.Module:
    """Change how much grafted packs count; on an error the model stays exactly as it was.

    All is computed from the originals again, so the model is what grafting with these weights would have made of it. Only tensors
    that the weights matter to are written. Of packs that are routed likewise: the bits are those of grafting with these weights, and
    what other packs have in memory is used again.

    Args:
        model: a model with grafts.
        weights: pack (name, folder or opened pack) → its weight, as :func:`graft` takes them; other packs keep theirs.
        progress: called with (``tensors``, done, all); only the tensors that change count.

    Returns:
        The same module.

    Raises:
        UsageError: no pack is grafted, a name means several, a weight is none, the method does not use weights, or the model's
            weights were changed since packs were grafted.
        NotFoundError: a pack is not grafted.
        IntegrityError: a pack's file is damaged.
    """
    if routing_of(model):
        return weigh_routed(model, weights, progress=progress)
    state = _changeable(model)
    return _change(model, replace(state, recipe=reweighed(state.recipe, weights)), progress)


def disable(model: nn.Module, pack: PackSource | None = None, *, progress: Progress | None = None) -> nn.Module:
    """Switch a grafted pack off: the model is as without it, and remembers it with its weight for :func:`enable`.

    A routed pack is chosen no more while it is off; :mod:`skillhub.compose.routed` says what rows get that would have had it.

    Args:
        model: a model with grafts.
        pack: name, folder or opened pack; None switches all off, for which no pack is read.
        progress: called with (``tensors``, done, all); only the tensors that change count.

    Returns:
        The same module.

    Raises:
        SkillhubError: as :func:`ungraft`; the model stays as it was.
    """
    if routing_of(model):
        return switch_routed(model, pack, on=False)
    state = _changeable(model)
    return _change(model, replace(state, disabled=state.disabled | _meant(state, pack)), progress)


def enable(model: nn.Module, pack: PackSource | None = None, *, progress: Progress | None = None) -> nn.Module:
    """Switch a pack on again that :func:`disable` switched off, with the weight that it has.

    Args:
        model: a model with grafts.
        pack: name, folder or opened pack; None switches all on.
        progress: called with (``tensors``, done, all); only the tensors that change count.

    Returns:
        The same module.

    Raises:
        SkillhubError: as :func:`ungraft`; the model stays as it was.
    """
    if routing_of(model):
        return switch_routed(model, pack, on=True)
    state = _changeable(model)
    return _change(model, replace(state, disabled=state.disabled - _meant(state, pack)), progress)


@contextmanager
def grafted(model: nn.Module, packs: Sequence[PackSource], **arguments: Any) -> Iterator[nn.Module]:
    """Graft packs for the length of a block; after it, also after an exception, the model is bit for bit as before.

        with skillhub.grafted(model, ["math-pack"]) as model:
            model.generate(...)

    Args:
        model: the base model; packs that are on it already count in the block too, and stay.
        packs: as :func:`graft` takes them.
        arguments: likewise.

    Yields:
        The same module.

    Raises:
        SkillhubError: as :func:`graft`, before the block; as :func:`ungraft`, after it.
    """
    before, routed_before = state_of(plain_model(model)), routing_of(model)
    graft(model, packs, **arguments)
    try:
        yield model
    finally:
        replace_routing(model, routed_before)
        now = state_of(plain_model(model))
        if now is not None or before is not None:
            _change(model, before or replace(grafts_of(plain_model(model)), recipe=Recipe(())), None)


def grafted_packs(model: nn.Module) -> tuple[GraftedPack, ...]:
    """Return the packs that are grafted onto a model, fused or routed: weight, density, whether enabled; sorted by digest."""
    state = state_of(plain_model(model))
    return state.packs if state else routed_packs(model)


def _changeable(model: nn.Module) -> Grafts:
    """Return what a grafted model carries, if its packs can be weighed and switched."""
    state = grafts_of(plain_model(model))
    _refuse_trained(state)
    return state


def _refuse_trained(state: Grafts | None) -> Grafts | None:
    """Refuse to change a model of which a pack is trained; return what others carry."""
    if state and state.trained:
        raise UsageError(
            f"{state.recipe.packs[0].pack} is being trained on this model.",
            hint="Pack what was learned (skillhub.pack_grafted), ungraft, and graft the new pack.",
        )
    return state


def _meant(state: Grafts, pack: PackSource | None) -> frozenset[str]:
    """Return the digests of one pack, or of all."""
    return frozenset(state.recipe.digests if pack is None else [grafted_digest(state.recipe, pack)])


def _change(model: nn.Module, wanted: Grafts, progress: Progress | None, *, force: bool = False) -> nn.Module:
    """Make a model what it is wanted to be; returns it."""
    base = plain_model(model)
    layout = grafted_layout(base)
    apply(base, layout, wanted, open_grafts(base, layout, wanted), progress, force=force)
    return model
