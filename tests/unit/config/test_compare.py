"""A checkpoint's config against the run's."""

import json

import pytest

from nt_dist.config.differences import differences
from nt_dist.families import make_config


def saved(**sections):
    """A checkpoint's config as its manifest holds it."""
    return json.loads(json.dumps(make_config(sections).to_dict()))


def test_the_same_config_does_not_differ():
    config = make_config({"sparsity": {"exempt": ["norm"]}, "train": {"betas": [0.9, 0.95]}})
    assert differences(json.loads(json.dumps(config.to_dict())), config) == ([], [])


@pytest.mark.parametrize(
    ("sections", "identity", "schedule"),
    [
        ({"model": {"hidden_size": 64}}, ["model.hidden_size = 64 differs from the checkpoint's 128"], []),
        ({"sparsity": {"density": 0.5}}, ["sparsity.density = 0.5 differs from the checkpoint's 0.9"], []),
        ({"train": {"lr": 1e-3}}, [], ["train.lr = 0.001 differs from the checkpoint's 0.002"]),
        (
            {"train": {"betas": [0.9, 0.95]}},
            [],
            ["train.betas = [0.9, 0.95] differs from the checkpoint's [0.9, 0.999]"],
        ),
        ({"run": {"dir": "elsewhere"}, "sparsity": {"storage": "masked"}}, [], []),
        (
            {"data": {"path": "x", "source": "text"}},
            [],
            [
                "data.source = 'text' differs from the checkpoint's 'stdlib'",
                "data.path = 'x' differs from the checkpoint's ''",
            ],
        ),
    ],
)
def test_differences_by_mark(sections, identity, schedule):
    assert differences(saved(), make_config(sections)) == (identity, schedule)


def test_other_words_for_the_same_do_not_differ():
    now = make_config({"model": {"num_kv_heads": 4}, "sparsity": {"exempt": ["output", "norm"]}})
    assert differences(saved(sparsity={"exempt": ["norm", "output"]}), now) == ([], [])
    now = make_config({"trails": {"fork": "embedding", "layers": 6}})
    assert differences(saved(trails={"fork": "embedding"}), now) == ([], [])
    moved, there = ({"source": "text", "path": [f"{folder}/a", "b"]} for folder in ("/new", "old"))
    assert differences(saved(data=there), make_config({"data": moved})) == ([], [])


def test_settings_older_or_newer_than_the_checkpoint():
    older = saved()
    del older["sparsity"]["regrow_from"], older["parallel"]
    older["model"]["later_key"] = 3
    assert differences(older, make_config({})) == ([], [])
    now = make_config({"sparsity": {"regrow_from": "last_micro_batch"}})
    assert differences(older, now)[1] == [
        "sparsity.regrow_from = 'last_micro_batch' differs from the checkpoint's 'all'"
    ]
