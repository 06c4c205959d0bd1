"""Imports run one way: the rooms stand in the order that CONTRIBUTING.md states, and no module waits for itself."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nt_dist"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def stated_order():
    """The levels of CONTRIBUTING.md, lowest first; rooms of one level do not know each other."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"Imports run one way(?:.*\n)+?\n((?:    .+\n)+)", text).group(1)
    return [re.findall(r"[a-z_]+", level) for level in re.split("←", block)]


def imports_of(name, path):
    """Every module of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or "hf" in path.parts, f"{name}: relative import"
            if node.level == 0 and node.module:
                found |= {f"{node.module}.{each.name}" for each in node.names} | {node.module}
    return {each for each in found if each in MODULES}


def room_of(name):
    return name.split(".")[1]


IMPORTS = {
    name: imports_of(name, path)
    for name, path in MODULES.items()
    if path.parent != PACKAGE or path.name != "__init__.py"
}


def wrong_arrows(imports, order):
    """Imports that run against ``order``."""
    level = {room: number for number, rooms in enumerate(order) for room in rooms}
    return [
        f"{name} imports {each}"
        for name, found in sorted(imports.items())
        for each in sorted(found)
        if room_of(name) != room_of(each) and level[room_of(each)] >= level[room_of(name)]
    ]


def test_every_room_has_its_place():
    rooms = {room_of(name) for name in IMPORTS}
    stated = [room for level in stated_order() for room in level]
    assert len(stated) == len(set(stated))
    assert set(stated) == rooms


def test_no_import_runs_against_the_order():
    assert wrong_arrows(IMPORTS, stated_order()) == []


def test_no_module_waits_for_itself():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_what_these_tests_look_for_is_found():
    order = [["low"], ["high"]]
    assert wrong_arrows({"p.low.a": {"p.high.b"}, "p.high.b": {"p.low.a"}}, order) == ["p.low.a imports p.high.b"]
    arrows = defaultdict(set, {"a": {"b"}, "b": {"a"}})
    with pytest.raises(CycleError):
        TopologicalSorter(arrows).prepare()
