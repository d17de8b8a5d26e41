"""A damaged pack is refused with a clear error, whichever byte of it changed and wherever it was cut; no wrong weight comes out of it.

A sample of what ``benchmarks/damage.py`` does at length.
"""

from __future__ import annotations

from collections import Counter

import pytest

from skillhub.codecs.decoding import CODECS
from tests.support.damage import Sample, build_sample, flips, outcome, truncations


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build_sample(tmp_path_factory.mktemp("damaged"))


def test_the_sample_has_every_codec_and_reads_as_it_should(sample: Sample) -> None:
    assert {
        codec for entry in sample.pack.manifest.variants[0].codec.tensors.values() for codec in entry.codecs
    } == set(CODECS)
    assert sum("/delta-" in path for path in sample.files) > 1
    assert sample.read()


def test_a_changed_byte_is_refused_or_makes_no_difference(sample: Sample) -> None:
    outcomes = Counter((path, outcome(sample, path, data)) for path, data in flips(sample.files, 500, seed=1))
    assert {told for _, told in outcomes} <= {"refused", "no difference"}, outcomes
    assert not [path for path, told in outcomes if told != "refused" and path != "skillpack.json"]


def test_a_cut_file_is_refused(sample: Sample) -> None:
    cuts = list(truncations(sample.files))[::60]
    assert Counter(outcome(sample, *cut) for cut in cuts) == {"refused": len(cuts)}


def test_decoders_meet_no_damage_that_leads_to_wrong_weights(sample: Sample) -> None:
    """The files' digests are those of the damaged files, so that nothing but the decoders and the tensors' digests can see it."""
    hidden = {path: data for path, data in sample.files.items() if path != "skillpack.json"}
    outcomes = Counter(outcome(sample, path, data, hide=True) for path, data in flips(hidden, 250, seed=2))
    assert set(outcomes) <= {"refused", "no difference"}, outcomes
    assert outcomes["refused"] > 200
    cuts = list(truncations(hidden))[::150]
    assert Counter(outcome(sample, *cut, hide=True) for cut in cuts) == {"refused": len(cuts)}
