"""The texts that tests/mutations breaks are there, and what takes their place is Python (or shell)."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.mutations import MUTATIONS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_can_be_made(mutation):
    file, (path, _, _) = mutation.file(ROOT), mutation.test.partition("::")
    broken = file.read_text(encoding="utf-8").replace(mutation.old, mutation.new)
    if file.suffix == ".py":
        ast.parse(broken)
    else:
        assert subprocess.run(["bash", "-n"], input=broken, text=True).returncode == 0
    name = mutation.test.partition("::")[2].partition("[")[0]
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
