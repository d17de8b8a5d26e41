"""The architecture, checked: which module may import which, and what no cheap command may load.

Two columns stand on the shared ground and meet only at the top. ``LAYERS`` is the picture, from the ground upward; a
new module is added to it, in the row above everything that it imports.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SHARED, DISTRIBUTION, WEIGHTS, TOP = "shared", "distribution", "weights", "top"

GROUND = [
    (SHARED, "errors settings progress redaction clones"),
    (SHARED, "files"),
    (SHARED, "locks"),
]
FORMATS = [
    (SHARED, "names documents fields canonical bfloat16 requirementfiles frontmatter"),
    (SHARED, "licenses routingcards"),
    (SHARED, "manifest remembered tensorfiles"),
    (SHARED, "releases lockfile authorfile packs prompts checkpointfiles projects signing"),
    (SHARED, "fingerprint graphs adapters configuration"),
    (SHARED, "basemodel mismatch bases"),
]
COLUMNS = [
    (DISTRIBUTION, "hub store"),
    (DISTRIBUTION, "sightings resolver policy pruning registries"),
    (DISTRIBUTION, "indexes environments screening nearmisses wanted modelcards"),
    (DISTRIBUTION, "placement inventory catalogs requirements changes announcements lints"),
    (DISTRIBUTION, "adapterplans lockchecks"),
    (DISTRIBUTION, "plans frontpages"),
    (DISTRIBUTION, "basechoice publisher withdrawals vendoring integrity consistency"),
    (DISTRIBUTION, "sessions diagnosis downloading"),
    (DISTRIBUTION, "updates transactions"),
    (DISTRIBUTION, "installer basechange"),
    (WEIGHTS, "compiled"),
    (WEIGHTS, "codecs rounding checkpoints conversions devices halves ranks"),
    (WEIGHTS, "tensorreaders deltafiles recipes"),
    (WEIGHTS, "deltareaders"),
    (WEIGHTS, "layout deltas packdeltas"),
    (WEIGHTS, "promises"),
    (WEIGHTS, "interop"),
    (WEIGHTS, "routing"),
    (WEIGHTS, "calibration"),
    (WEIGHTS, "partials"),
    (WEIGHTS, "deltaencoding"),
    (WEIGHTS, "budgets"),
    (WEIGHTS, "goals relatedness scoring"),
    (WEIGHTS, "measures"),
    (WEIGHTS, "compose"),
    (WEIGHTS, "nearness"),
    (WEIGHTS, "packer"),
    (WEIGHTS, "adapterpacker differences evaluation exporter repacker"),
    (WEIGHTS, "differencemaps"),
    (TOP, "cli __init__"),
    (TOP, "__main__"),
]
LAYERS = [*GROUND, *FORMATS, *COLUMNS]
"""Rows of modules and packages of ``skillhub``; the modules of one row do not import each other."""

PLACES = {name: (row, column) for row, (column, names) in enumerate(LAYERS) for name in names.split()}

DOORS = {
    ("bases", "hub"): "a base that is named by its repository is fetched",
    ("compose", "environments"): "a pack is named as it is installed",
}
"""Imports across the columns: inside a function or for types only, each with its reason."""

WEIGHT_LIBRARIES = {"torch", "transformers", "accelerate", "peft", "safetensors.torch"}
HUB_LIBRARY = "huggingface_hub"


@dataclass(frozen=True)
class Import:
    """One import: ``module`` of ours imports ``target``; ``lazy`` when that is inside a function or for types only."""

    module: str
    line: int
    target: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}, imports {self.target}"


def source_files() -> dict[str, Path]:
    """Return every module of both packages by its dotted name."""
    found = {}
    for folder in (ROOT, ROOT / "registry"):
        for package in ("skillhub", "skillhub_registry"):
            for path in sorted((folder / package).rglob("*.py")):
                parts = path.relative_to(folder).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = source_files()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(module: str, path: Path) -> list[Import]:
    """Return the imports of a module, wherever in it they stand."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module, child.lineno, alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}, line {child.lineno}: write the import with its full name"
                yield from (Import(module, child.lineno, f"{child.module}.{one.name}", lazy) for one in child.names)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, lazy or function or for_types)

    return list(walk(parsed(path), False))


def all_imports() -> list[Import]:
    return [one for module, path in FILES.items() for one in imports_of(module, path)]


def component(name: str) -> str:
    """Return the first-level part of a dotted name of ours: ``skillhub.hub.bases.X`` → ``hub``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def own_module(target: str) -> str | None:
    """Return the module of ours that an import's target is or is in; None for other people's."""
    while target:
        if target in FILES:
            return target
        target = target.rpartition(".")[0]
    return None


def is_in(target: str, library: str) -> bool:
    return target == library or target.startswith(f"{library}.")


def inner_imports() -> list[tuple[Import, str, str]]:
    """Return the imports between components of ``skillhub``, with both components."""
    found = []
    for one in all_imports():
        target = own_module(one.target)
        if one.module.partition(".")[0] == "skillhub" and target and target.partition(".")[0] == "skillhub":
            importer, imported = component(one.module), component(target)
            if importer != imported and one.target != "skillhub.__version__" and {importer, imported} <= set(PLACES):
                found.append((one, importer, imported))
    return found


def test_every_module_has_its_place() -> None:
    components = {component(module) for module in FILES if module.partition(".")[0] == "skillhub"}
    missing = sorted(components - set(PLACES))
    assert not missing, (
        f"{', '.join(missing)}: not in LAYERS of tests/test_layers.py. Add each to the row above everything it imports: "
        "to a 'shared' row when it needs neither torch nor the Hub, to a 'distribution' row when it needs the Hub, to a "
        "'weights' row when it needs torch."
    )


def test_imports_go_downward() -> None:
    upward = [
        f"{one}: {imported} is not below {importer} in LAYERS of tests/test_layers.py"
        for one, importer, imported in inner_imports()
        if PLACES[imported][0] >= PLACES[importer][0] and (importer, imported) not in DOORS
    ]
    assert not upward, "\n".join(upward)


def test_the_columns_meet_only_at_the_top() -> None:
    crossing = []
    for one, importer, imported in inner_imports():
        column, other = PLACES[importer][1], PLACES[imported][1]
        if column != TOP and other not in (SHARED, column) and (importer, imported) not in DOORS:
            crossing.append(f"{one}: {importer} is in the {column} column, {imported} in the {other} column")
    assert not crossing, "\n".join(crossing)


def test_every_door_between_the_columns_is_used_and_opens_late() -> None:
    used = {(importer, imported): one for one, importer, imported in inner_imports()}
    for door, reason in DOORS.items():
        assert door in used, f"nothing goes through the door {door} any more ({reason}): remove it"
    early = [str(one) for one, *door in inner_imports() if tuple(door) in DOORS and not one.lazy]
    assert not early, f"an import through a door belongs into a function: {early}"


def test_only_the_weights_column_imports_torch() -> None:
    def may(one: Import) -> bool:
        column = PLACES.get(component(one.module), (0, SHARED))[1]
        return is_in(one.module, "skillhub") and (column == WEIGHTS or (column == TOP and one.lazy))

    heavy = [one for one in all_imports() if any(is_in(one.target, library) for library in WEIGHT_LIBRARIES)]
    wrong = [str(one) for one in heavy if not may(one)]
    assert heavy and not wrong, "\n".join(wrong)


def test_only_hub_imports_huggingface_hub() -> None:
    wrong = [str(one) for one in all_imports() if is_in(one.target, HUB_LIBRARY) and component(one.module) != "hub"]
    assert not wrong, "\n".join(wrong)


def test_the_registry_imports_ground_and_formats_only() -> None:
    low = {name for _, names in [*GROUND, *FORMATS] for name in names.split()}
    of_client = [
        (one, component(own_module(one.target) or ""))
        for one in all_imports()
        if one.module.startswith("skillhub_registry") and is_in(one.target, "skillhub")
    ]
    wrong = [str(one) for one, name in of_client if name not in low and one.target != "skillhub.__version__"]
    assert of_client and not wrong, "\n".join(wrong)
    assert not [
        str(one) for one in all_imports() if is_in(one.module, "skillhub") and "registry" in one.target.split(".")[0]
    ]


def test_commands_import_the_columns_inside_functions() -> None:
    early = [
        str(one)
        for one, importer, imported in inner_imports()
        if PLACES[importer][1] == TOP and (PLACES[imported][1] == WEIGHTS or imported == "hub") and not one.lazy
    ]
    assert not early, "\n".join(early)


def test_no_module_is_imported_by_a_computed_name() -> None:
    facades = {"skillhub", "skillhub.cli"}  # both choose from a table of names
    ways = {"import_module", "importlib.import_module", "__import__", "exec", "eval"}
    wrong = [
        f"{module}, line {node.lineno}: {ast.unparse(node.func)}"
        for module in sorted(set(FILES) - facades)
        for node in ast.walk(parsed(FILES[module]))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ways
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["skillhub", "skillhub_registry"])
def test_no_two_modules_need_each_other_to_be_imported(package: str) -> None:
    needs: dict[str, set[str]] = {module: set() for module in FILES if is_in(module, package)}
    for one in all_imports():
        target = own_module(one.target)
        # a package's own modules may name it: Python has begun to import it by then
        if one.module in needs and target in needs and not one.lazy and not is_in(one.module, target):
            needs[one.module].add(target)
    while free := {module for module, needed in needs.items() if not needed & set(needs)}:
        for module in free:
            del needs[module]
    assert not needs, f"these import each other in a circle: {sorted(needs)}"


@pytest.mark.parametrize(
    ("module", "source", "check"),
    [
        ("skillhub.newcomer", "", test_every_module_has_its_place),
        ("skillhub.names", "from skillhub.manifest import Manifest", test_imports_go_downward),
        ("skillhub.names", "def f():\n    import skillhub.cli.options", test_imports_go_downward),
        ("skillhub.releases", "from skillhub import packs", test_imports_go_downward),
        ("skillhub.store", "import skillhub", test_imports_go_downward),
        ("skillhub.installer", "def f():\n    from skillhub import codecs", test_the_columns_meet_only_at_the_top),
        ("skillhub.packer", "from skillhub.store import Store", test_the_columns_meet_only_at_the_top),
        (
            "skillhub.bases",
            "from skillhub.hub import fetch_base",
            test_every_door_between_the_columns_is_used_and_opens_late,
        ),
        ("skillhub.bases", "", test_every_door_between_the_columns_is_used_and_opens_late),
        ("skillhub.store", "def f():\n    import torch.nn", test_only_the_weights_column_imports_torch),
        ("skillhub.cli.packing", "from safetensors.torch import load", test_only_the_weights_column_imports_torch),
        ("skillhub_registry.app", "import torch", test_only_the_weights_column_imports_torch),
        ("skillhub.store", "from huggingface_hub import HfApi", test_only_hub_imports_huggingface_hub),
        ("skillhub_registry.app", "import huggingface_hub", test_only_hub_imports_huggingface_hub),
        (
            "skillhub_registry.app",
            "from skillhub.store import Store",
            test_the_registry_imports_ground_and_formats_only,
        ),
        ("skillhub.store", "import skillhub_registry.app", test_the_registry_imports_ground_and_formats_only),
        ("skillhub.cli.packing", "from skillhub.packer import pack", test_commands_import_the_columns_inside_functions),
        (
            "skillhub.store",
            "import importlib\nimportlib.import_module('torch')",
            test_no_module_is_imported_by_a_computed_name,
        ),
    ],
)
def test_each_check_can_fail(
    module: str, source: str, check: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setitem(FILES, module, path)
    with pytest.raises(AssertionError):
        check()


def loaded_by(code: str, folder: Path) -> set[str]:
    """Return the top-level modules that are loaded after ``code`` ran in a process of its own."""
    report = "import sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    script = f"import atexit; atexit.register(lambda: exec({report!r}))\n{code}"
    homes = {
        name: str(folder)
        for name in ("HOME", "SKILLHUB_CACHE", "SKILLHUB_HOME", "SKILLHUB_STATE", "SKILLHUB_CONFIG", "HF_HOME")
    }
    environment = {**os.environ, **homes, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'registry'}"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stderr.split())


HEAVY = {"torch", "transformers", "huggingface_hub"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["tree"],
        ["why", "x"],
        ["freeze"],
        ["install", "--help"],
        ["pack", "--help"],
    ],
)
def test_a_cheap_command_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    loaded = loaded_by(f"from skillhub.cli import main; main({arguments!r})", tmp_path)
    assert "skillhub" in loaded
    assert not loaded & {*HEAVY, "numpy", "requests", "zstandard"}


@pytest.mark.parametrize("module", ["skillhub", "skillhub.cli"])
def test_the_front_doors_are_cheap(module: str, tmp_path: Path) -> None:
    assert not loaded_by(f"import {module}", tmp_path) & {*HEAVY, "numpy", "rich", "requests", "packaging"}


def test_everything_outside_the_weights_column_loads_without_torch_and_the_hub(tmp_path: Path) -> None:
    names = [module for module in FILES if PLACES.get(component(module), (0, TOP))[1] in (SHARED, DISTRIBUTION)]
    modules = [module for module in names if module.startswith("skillhub.")]
    assert {"skillhub.manifest", "skillhub.fingerprint", "skillhub.hub", "skillhub.store"} <= set(modules)
    assert not loaded_by("\n".join(f"import {module}" for module in modules), tmp_path) & HEAVY


def test_the_registry_loads_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    modules = [module for module in FILES if module.startswith("skillhub_registry") and "__main__" not in module]
    assert not loaded_by("\n".join(f"import {module}" for module in modules), tmp_path) & HEAVY
