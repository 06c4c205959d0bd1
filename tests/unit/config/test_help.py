"""The settings as text."""

from nt_dist.config.help import help_text, markdown_table
from nt_dist.config.keys import entries_of, keys_of
from nt_dist.config.settings import sections_of
from nt_dist.families import DEFAULT, FAMILIES


def test_help_lists_every_setting_with_default_and_mark():
    text = help_text(FAMILIES.values())
    assert "usage: train.py [--config" in text
    for name, section in sections_of(DEFAULT).items():
        assert f"[{name}] " in text
        for entry in keys_of(section):
            assert f"\n  {entry} = " in text
    assert "density = 0.9  (identity)\n      Share of the weights that is stored; 1: dense. Must be in (0, 1]." in text
    assert "drop_fraction = 0.5; llama: 0.1  (schedule)" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_table_has_one_row_a_setting():
    rows = markdown_table(FAMILIES.values()).splitlines()[2:]
    sections = {section for family in FAMILIES.values() for section in sections_of(family).values()}
    assert len(rows) == sum(len(entries_of(section)) for section in sections)
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
    assert "| `data.sources.NAME.path` (llama) | `data.path` | schedule |" in "".join(rows)  # what it leaves out
    assert "| `data.sources.NAME.weight` (llama) | `1.0` | schedule |" in "".join(rows)
    assert '| `train.precision` | `"fp32"` | free | fp32, or bf16 with fp32 masters and gradients. |' in rows
