"""Any sequence of operations on a grafted model: each step is as one call on a fresh base, and the end is the base's bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from skillhub.compose.grafts import disable, enable, graft, grafted, grafted_packs, set_weights, ungraft
from skillhub.errors import IntegrityError, UsageError
from tests.support.tiny_models import bits, build_pack, build_place, load_model, with_entry

KINDS = ("llama", "tied", "gpt2", "mixtral")
NAMES = ("one", "two", "three")
WEIGHTS = st.sampled_from([-0.5, 0.0, 0.3, 1.0, {"attn|fc": 0.7, "": 0.2}, [0.1, 0.9]])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of :func:`build_place`."""
    root = tmp_path_factory.mktemp("models")
    return functools.cache(lambda kind: build_place(kind, root / kind))


@functools.cache
def damaged_pack(folder: Path, at: float) -> Path:
    """Return a pack of which one tensor, at a share of all, does not decode to what its manifest says."""
    bad = folder / f"bad{at}"
    pack = build_pack(folder / "tuned2", folder / "base", bad, name="bad", lossy=True)
    names = sorted(pack.manifest.variants[0].codec.tensors)
    with_entry(pack, names[int(at * (len(names) - 1))], digest="0" * 64)
    return bad


class GraftedModel(RuleBasedStateMachine):
    """A model that packs come to and leave, and what it is to be."""

    places: Callable[[str], Path]

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, Any] = {}
        self.disabled: set[str] = set()

    @initialize(kind=st.sampled_from(KINDS), method=st.sampled_from(["linear", "ties", "dare_ties"]))
    def load(self, kind: str, method: str) -> None:
        self.folder, self.method = self.places(kind), method
        self.model = load_model(self.folder / "base")
        self.base = bits(self.model)

    def graft_on(self, model: Any, weights: dict[str, Any]) -> None:
        if weights:
            packs = [self.folder / name for name in weights]
            graft(model, packs, weights=list(weights.values()), method=self.method)

    @rule(name=st.sampled_from(NAMES), weight=WEIGHTS)
    def add(self, name: str, weight: Any) -> None:
        if name in self.weights:
            with pytest.raises(UsageError, match="there twice"):
                self.graft_on(self.model, {name: weight})
        else:
            self.graft_on(self.model, {name: weight})
            self.weights[name] = weight

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def take_out(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.weights)))
        ungraft(self.model, name)
        del self.weights[name]
        self.disabled.discard(name)

    @precondition(lambda self: self.weights)
    @rule(data=st.data())
    def weigh(self, data: Any) -> None:
        changes = data.draw(st.dictionaries(st.sampled_from(sorted(self.weights)), WEIGHTS))
        set_weights(self.model, changes)
        self.weights.update(changes)

    @precondition(lambda self: self.weights)
    @rule(data=st.data(), on=st.booleans())
    def switch(self, data: Any, on: bool) -> None:
        name = data.draw(st.sampled_from([None, *sorted(self.weights)]))
        names = set(self.weights) if name is None else {name}
        (enable if on else disable)(self.model, name)
        self.disabled = self.disabled - names if on else self.disabled | names

    @rule(name=st.sampled_from(NAMES), fails=st.booleans())
    def borrow(self, name: str, fails: bool) -> None:
        if name in self.weights:
            return
        before = bits(self.model)
        try:
            with grafted(self.model, [self.folder / name], method=self.method) as model:
                assert model is self.model and name in {item.pack.manifest.name for item in grafted_packs(model)}
                ungraft(model, name) if fails else set_weights(model, {name: 0.4})
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert fails
        assert bits(self.model) == before

    @rule(at=st.sampled_from([0.0, 0.4, 1.0]))
    def fail(self, at: float) -> None:
        with pytest.raises(IntegrityError):
            graft(self.model, [damaged_pack(self.folder, at)], method=self.method, verify="full")

    @rule(after=st.integers(1, 12), kind=st.sampled_from([KeyboardInterrupt, MemoryError]))
    def interrupt(self, after: int, kind: type[BaseException]) -> None:
        def progress(what: str, done: int, total: int) -> None:
            if done == min(after, total):
                raise kind

        if not self.weights:
            return
        try:
            ungraft(self.model, progress=progress)
        except kind:
            return
        self.weights, self.disabled = {}, set()

    @invariant()
    def is_as_one_call_makes_it(self) -> None:
        active = {name: weight for name, weight in self.weights.items() if name not in self.disabled}
        fresh = load_model(self.folder / "base")
        self.graft_on(fresh, active)
        assert bits(self.model) == bits(fresh)
        found = {item.pack.manifest.name: item.enabled for item in grafted_packs(self.model)}
        assert found == {name: name not in self.disabled for name in self.weights}

    def teardown(self) -> None:
        if self.weights:
            ungraft(self.model)
        assert bits(self.model) == self.base
        assert grafted_packs(self.model) == ()


def test_after_any_sequence_of_operations_the_last_ungraft_gives_the_original_bytes(places: Callable[[str], Path]):
    class Machine(GraftedModel):
        pass

    Machine.places = staticmethod(places)
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=20, stateful_step_count=8, deadline=None, suppress_health_check=checks)
    )
