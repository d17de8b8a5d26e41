"""Why there is no solution, in sentences that end well before the reader's patience does.

A short proof is told step by step, each as "Because …, …". Of a long one the requirements and conflicts that it rests on are
listed, those nearest to its end first, and the number of the others is told.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from packaging.version import Version

from skillhub.names import parse_requirement
from skillhub.resolver.engine import Claim, Step
from skillhub.resolver.listings import Demand, Listings, numbers_in
from skillhub.resolver.wording import (
    covers_all,
    enumerate_words,
    is_one,
    reasons_words,
    shortened,
    subject_words,
    versions_words,
)

_MAX_STEPS = 10  # that are told one by one
_MAX_FACTS = 14  # that are listed instead
_MAX_PACKS = 6  # whose unusable releases are told


@dataclass(frozen=True)
class Explanation:
    """What to tell.

    Attributes:
        wanted: what the user asks for that has to do with it.
        lines: the sentences; none where a single requirement has no release that will do, which the reasons tell.
        reasons: pack → why releases of it are out.
    """

    wanted: tuple[Demand, ...]
    lines: tuple[str, ...]
    reasons: dict[str, str]


def explain(listings: Listings, proof: Step) -> Explanation:
    """Return why there is no solution.

    Args:
        listings: the packs that the proof is about.
        proof: its last step.
    """
    facts = [step for step in _steps(proof) if step.kind != "follows"]
    asked = [step.demand for step in facts if step.demand is not None]
    for demand in asked:
        if not _may_do(listings, demand):
            return Explanation((demand,), (), {str(listings[demand.key].name): _why_none(listings, demand)})
    derived = sum(step.kind == "follows" for step in _steps(proof))
    lines = _Story(listings).tell(proof) if derived <= _MAX_STEPS else _list_facts(listings, proof)
    return Explanation(tuple(asked), tuple(lines), _reasons(listings, facts))


def _may_do(listings: Listings, demand: Demand) -> bool:
    numbers = numbers_in(listings[demand.key].matching(demand.requirement))
    return any(listings.screened(demand.key, number) is None for number in numbers)


def _why_none(listings: Listings, demand: Demand) -> str:
    """Return what is wrong with each release of a pack of which none will do."""
    listing = listings[demand.key]
    if listing.index is None:
        return "no registry has it"
    if not listing.candidates:
        return "it has no releases"
    reasons = dict(rejections(listings, demand.key, [demand]))
    newest_first = [one.version for one in reversed(listing.candidates)]
    return reasons_words([(version, reasons.get(version, "does not match")) for version in newest_first])


def _steps(proof: Step) -> Iterator[Step]:
    """Yield every step once, the last one first and those nearest to it next."""
    pending, seen = deque([proof]), {id(proof)}
    while pending:
        step = pending.popleft()
        yield step
        for cause in step.causes:
            if id(cause) not in seen:
                seen.add(id(cause))
                pending.append(cause)


def fact_words(listings: Listings, step: Step) -> str:
    """Return what a step that follows from nothing says."""
    first = step.claims[0]
    if step.kind == "asked":
        return f"{shortened(str(step.demand))} is asked for"
    listing = listings[first.key]
    subject, verb_end = subject_words(listing, first.bits), "s" if is_one(listing, first.bits) else ""
    if step.kind == "rejected":
        return f"{subject} must not be taken"
    if step.kind == "conflicts":
        return f"{subject} conflict{verb_end} with {shortened(_conflict_text(listings, step))}"
    texts = _requirement_words(listings, first, step.claims[1].key)
    missing = "" if step.claims[1].bits else f", {_unmet(listings, step.claims[1].key)}"
    return f"{subject} require{verb_end} {enumerate_words(texts)}{missing}"


def _unmet(listings: Listings, key: str) -> str:
    """Return why a requirement of a pack is met by no release, as the end of a sentence."""
    listing = listings[key]
    if listing.index is None:
        return "which no registry has"
    if not listing.candidates:
        return "which has no releases"
    if len(listing.accepted) < len(listing.candidates) or any(one.version.is_prerelease for one in listing.accepted):
        return "and no release of it will do"
    oldest, newest = listing.accepted[0].version, listing.accepted[-1].version
    return f"of which there is only {newest}" if oldest == newest else f"of which there are {oldest} to {newest}"


def _demands(listings: Listings, claim: Claim, other: str) -> list[Demand]:
    """Return what releases require of another pack, as the newest of them says it."""
    newest = (claim.bits & listings[claim.key].all).bit_length() - 1
    return [one for one in listings.demands(claim.key, newest) if one.key == other]


def _requirement_words(listings: Listings, claim: Claim, other: str) -> list[str]:
    """Return what releases require of another pack: as they say it, or by its name alone where they say different things."""
    said = {
        tuple(str(one) for one in listings.demands(claim.key, number) if one.key == other)
        for number in numbers_in(claim.bits & listings[claim.key].all)
    }
    if len(said) == 1:
        return [shortened(text) for text in next(iter(said))]
    return [str(listings[other].name)]


def _conflict_text(listings: Listings, step: Step) -> str:
    by, other = step.claims
    newest = listings[by.key].accepted[(by.bits & listings[by.key].all).bit_length() - 1]
    for text in newest.release.event.conflicts:
        conflict = parse_requirement(text)
        falling = [
            one for one in listings[other.key].accepted if conflict.specifier.contains(one.version, prereleases=True)
        ]
        if listings.key_of(conflict.pack) == other.key and falling:
            return text
    return f"{listings[other.key].name} {versions_words(listings[other.key], other.bits)}"


def conclusion_words(listings: Listings, step: Step) -> str:
    """Return what follows at a step."""
    if not step.claims:
        return "no releases will do together"
    out = [one for one in step.claims if one.holds]
    if len(out) == len(step.claims):
        return _cannot(listings, out)
    needed = [_together(listings, one) for one in step.claims if not one.holds]
    choice = enumerate_words(needed, last="or")
    if not out:
        return f"{choice} has to be chosen"
    if len(out) > 1:
        return f"{enumerate_words([_together(listings, one) for one in out])} need {choice}"
    listing, bits = listings[out[0].key], out[0].bits
    return f"{subject_words(listing, bits)} need{'s' if is_one(listing, bits) else ''} {choice}"


def _cannot(listings: Listings, claims: Sequence[Claim]) -> str:
    if len(claims) > 1:
        return f"{enumerate_words([_together(listings, one) for one in claims])} cannot be chosen together"
    listing, bits = listings[claims[0].key], claims[0].bits
    name = f"no {listing.name}" if covers_all(listing, bits) else subject_words(listing, bits)
    return f"{name} can{'' if covers_all(listing, bits) else 'not'} be chosen"


def _together(listings: Listings, claim: Claim) -> str:
    """Return a pack's releases as one of several things."""
    listing = listings[claim.key]
    return str(listing.name) if covers_all(listing, claim.bits) else subject_words(listing, claim.bits)


@dataclass
class _Story:
    """Tells a proof step by step; a step that comes up again later has a number."""

    listings: Listings
    lines: list[str] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)

    def tell(self, proof: Step) -> list[str]:
        """Return the sentences."""
        uses = Counter(id(cause) for step in _steps(proof) for cause in step.causes)
        before: Step | None = None
        for step in _in_order(proof):
            sentence = self._sentence(step, before)
            is_far = uses[id(step)] > 1 or not _is_told_next(step, proof)
            if is_far and step is not proof:
                self.numbers[id(step)] = len(self.numbers) + 1
                sentence += f" ({self.numbers[id(step)]})"
            self.lines.append(f"{sentence}.")
            before = step
        # the last sentence only repeats what is asked for, where another has told why that cannot be
        is_said = any(cause.kind == "asked" for cause in proof.causes) and len(self.lines) > 1
        return self.lines[:-1] if is_said else self.lines

    def _sentence(self, step: Step, before: Step | None) -> str:
        causes = [cause for cause in step.causes if cause is not before]
        said = " and ".join(dict.fromkeys(self._cause(cause) for cause in causes))
        start = "And because" if before is not None and len(causes) < len(step.causes) else "Because"
        return (
            f"{start} {said}, {conclusion_words(self.listings, step)}"
            if said
            else conclusion_words(self.listings, step)
        )

    def _cause(self, step: Step) -> str:
        if step.kind != "follows":
            return fact_words(self.listings, step)
        return f"{conclusion_words(self.listings, step)} ({self.numbers[id(step)]})"


def _in_order(proof: Step) -> list[Step]:
    """Return the steps that follow from others, each after those."""
    found: list[Step] = []
    pending, seen = [(proof, False)], set()
    while pending:
        step, is_open = pending.pop()
        if is_open:
            found.append(step)
        elif id(step) not in seen and step.kind == "follows":
            seen.add(id(step))
            pending.append((step, True))
            pending += [(cause, False) for cause in step.causes]
    return found


def _is_told_next(step: Step, proof: Step) -> bool:
    """Say whether the sentence after this step's is about what follows from it."""
    order = _in_order(proof)
    place = next(number for number, one in enumerate(order) if one is step)
    return place + 1 < len(order) and any(cause is step for cause in order[place + 1].causes)


def _list_facts(listings: Listings, proof: Step) -> list[str]:
    """Return what a long proof rests on besides what is asked for: what is nearest to its end."""
    facts = [step for step in _steps(proof) if step.kind not in ("follows", "asked")]
    lines = [f"{words}." for words in dict.fromkeys(fact_words(listings, step) for step in facts[:_MAX_FACTS])]
    if len(facts) > _MAX_FACTS:
        lines.append(f"{len(facts) - _MAX_FACTS} other requirements and conflicts take part.")
    return lines


def _reasons(listings: Listings, facts: Sequence[Step]) -> dict[str, str]:
    """Return for each pack in a proof why releases are out that what is required of it would allow."""
    demands: dict[str, list[Demand]] = {}
    for step in facts:
        if step.kind == "asked" and step.demand is not None:
            demands.setdefault(step.demand.key, []).append(step.demand)
        elif step.kind == "requires":
            demands.setdefault(step.claims[1].key, []).extend(_demands(listings, step.claims[0], step.claims[1].key))
    screened = {step.claims[0].key for step in facts if step.kind == "rejected"}
    found = {}
    for key in dict.fromkeys([*demands, *sorted(screened)]):
        reasons = rejections(listings, key, list(dict.fromkeys(demands.get(key, []))))
        if reasons:
            found[str(listings[key].name)] = reasons_words(reasons)
        if len(found) == _MAX_PACKS:
            break
    return found


def rejections(listings: Listings, key: str, demands: Sequence[Demand]) -> list[tuple[Version, str]]:
    """Return why releases of a pack are out that some requirement on it allows, the newest first."""
    listing = listings[key]
    found = []
    numbers = {one.version: number for number, one in enumerate(listing.accepted)}
    for one in reversed(listing.candidates):
        version = one.version
        allowed = [d for d in demands if d.requirement.specifier.contains(version, prereleases=True)]
        if demands and not allowed:
            continue
        number = numbers.get(version)
        screened = None if number is None else listings.screened(key, number)
        if one.rejection is not None:
            found.append((version, one.rejection.reason))
        elif screened is not None:
            found.append((version, screened.reason))
        elif number is not None and not any(listing.matching(d.requirement) >> number & 1 for d in allowed):
            found.append((version, "is a pre-release, which nobody asked for"))
    return found
