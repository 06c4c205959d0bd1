"""The documents say what is so: links lead somewhere, named files are there, tables are those of the code."""

import inspect
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from nt_dist.config.help import markdown_table
from nt_dist.families import FAMILIES, load_config
from tests.unit.inference.trained_run import write_run

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SHIPPED = ["nt_dist", "benchmarks", "tools", "tests", "configs", "docs", "launch_scripts", ".ci"]
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:work|home|root|tmp|opt|Users|mnt)/[\w.]")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def _anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    broken = []
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


@documents
def test_files_named_in_commands_are_there(document):
    named = re.findall(
        r"(?<![\w/])(?:launch_scripts|benchmarks|tools|configs|tests|nt_dist)/[\w/.]*\w",
        document.read_text(encoding="utf-8"),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@documents
def test_nothing_is_left_to_be_filled_in(document):
    assert "@@" not in document.read_text(encoding="utf-8")


def test_table_of_settings_is_that_of_the_code():
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    table = text.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]
    assert table == markdown_table(FAMILIES.values())


def test_the_readme_lists_its_sections():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\[([^\]]+)\]\(#[\w-]+\)", readme.split("## Two commands")[0])
    assert listed == re.findall(r"^## (.+)$", readme, re.MULTILINE)


def test_python_of_the_page_on_python_does_what_it_says(tmp_path, monkeypatch, capsys):
    """Its first block; the second one's functions are there, as a process group is not."""
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    write_run(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch}
    exec(first, names)
    assert names["logits"].shape[0] == 3 and names["mean"].sum(-1).allclose(torch.ones(1, len(names["tokens"])))
    assert re.match(r"\d\.\d{3} '", capsys.readouterr().out)
    imports = second.split("\n\n")[0]
    exec(imports, names)
    assert {"overrides", "full"} <= inspect.signature(names["evaluate_checkpoint"]).parameters.keys()


def test_overrides_in_documents_are_settings():
    """Every section.key=value in a command is accepted, key and value."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for command in text.replace("\\\n", " ").splitlines():  # a command's settings go together
            overrides = re.findall(
                r"(?<![\w.])((?:model|trails|sparsity|data|train|run)\.[a-z_]+=[\w./+-]+)(?![\w.…])", command
            )
            named = re.search(r"--config (configs/\w+\.toml)", command)
            path = ROOT / (named[1] if named else "configs/quickstart.toml")
            load_config(path, overrides, check_paths=False)  # of an example they are not there


def test_no_machine_paths():
    files = [file for folder in SHIPPED for file in (ROOT / folder).rglob("*") if file.is_file()]
    files += [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.txt")]
    found = []
    for file in files:
        if file.suffix == ".pyc" or file == Path(__file__):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found
    assert MACHINE_PATH.search('open("/home/x/file")') and not MACHINE_PATH.search("https://example.com/home/x")


def test_picture_is_well_formed_and_stands_alone():
    """No fonts, styles or pictures from elsewhere: it is to be seen on GitHub and offline."""
    picture = ROOT / "docs" / "architecture.svg"
    tree = ElementTree.parse(picture)
    assert tree.getroot().tag.endswith("svg") and tree.getroot().get("viewBox")
    assert not re.search(r"href=|<style|@import", picture.read_text(encoding="utf-8"))


def test_pins_lie_within_the_ranges_of_setup():
    """Every direct dependency of setup.py is pinned, and pytest's own configuration can be read."""
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    needed = re.findall(r'"([\w-]+)>=([\d.]+)(?:,<([\d.]+))?"', (ROOT / "setup.py").read_text())
    assert {"torch", "deepspeed", "megatron-core"} <= {name for name, _, _ in needed}
    for name, least, below in needed:
        if name != "python":
            assert _version(least) <= _version(pins[name]), name
            assert not below or _version(pins[name]) < _version(below), name
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"] == 120


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
