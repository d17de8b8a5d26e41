"""Damage a pack in every way that a disk or a network could, and see that it is refused.

    python benchmarks/damage.py [--flips 10000] [--seed 0]

A tiny pack in which every codec has a tensor, with several delta files, a record of its base and a routing card. Its bytes are changed one at a time,
and every file of it is cut at every place. Each time all of the pack is read: manifest, files against their digests, routing card,
every tensor decoded (with its base where it takes that). What may come of it is an error with a message and a hint, or what the whole
pack decodes to. Then the same once more past the files' digests: the manifest is given those of the damaged files, so that only decoders and the
tensors' own digests can notice. A crash, a hang (a minute for one read), or another weight than the whole pack's is a failure. Memory is limited to 4 GB.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measuring import write_report

from tests.support.damage import Sample, build_sample, flips, outcome, truncations

ALLOWED = ("refused", "no difference")
MEMORY, SECONDS = 4 << 30, 60


def main() -> None:
    """Damage and read; write ``reports/damage.md`` and exit with 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as scratch:
        sample = build_sample(Path(scratch))
        others = {path: data for path, data in sample.files.items() if path != "skillpack.json"}
        rows = {
            "a byte changed": damage(sample, flips(sample.files, arguments.flips, arguments.seed)),
            "cut": damage(sample, truncations(sample.files)),
            "a byte changed, past the digests": damage(sample, flips(others, arguments.flips, arguments.seed + 1), hide=True),
            "cut, past the digests": damage(sample, truncations(others), hide=True),
        }  # fmt: skip
    failures = [told for counts in rows.values() for _, told in counts if told not in ALLOWED]
    command = f"python benchmarks/damage.py --flips {arguments.flips} --seed {arguments.seed}"
    write_report("damage", "A damaged pack, read", report(sample, rows, failures, command))
    sys.exit(bool(failures))


def damage(sample: Sample, damages: Iterable[tuple[str, bytes]], *, hide: bool = False) -> Counter[tuple[str, str]]:
    """Return how often damage to a file, by its name, led to what."""
    counts: Counter[tuple[str, str]] = Counter()
    for path, data in damages:
        signal.alarm(SECONDS)  # a hang ends the process
        counts[Path(path).name, outcome(sample, path, data, hide=hide)] += 1
        signal.alarm(0)
    return counts


def report(sample: Sample, rows: dict[str, Counter[tuple[str, str]]], failures: list[str], command: str) -> list[str]:
    """Return the report's lines."""
    size = sum(map(len, sample.files.values()))
    codecs = sorted({codec for one in sample.pack.manifest.variants[0].codec.tensors.values() for codec in one.codecs})
    seconds = f"{time.process_time():.0f} s of CPU time"
    lines = [
        f"A pack of {len(sample.files)} files and {size} bytes, with tensors of every codec ({', '.join(codecs)}); {seconds}.",
        "",
        "| Damage | File | Refused | No difference | Wrong |",
        "|---|---|---|---|---|",
    ]
    for what, counts in rows.items():
        for file in sorted({file for file, _ in counts}):
            wrong = sum(times for (name, told), times in counts.items() if name == file and told not in ALLOWED)
            lines.append(f"| {what} | {file} | {counts[file, ALLOWED[0]]} | {counts[file, ALLOWED[1]]} | {wrong} |")
    return [*lines, "", f"Failures: {len(failures)}.", *sorted(set(failures)), "", f"Command: `{command}`"]


if __name__ == "__main__":
    main()
