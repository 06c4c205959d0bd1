"""Settings: complete in themselves, derived values, and the way to TOML and back."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from typing import Literal, get_args, get_origin

import pytest

from nt_dist.config.keys import FREE, IDENTITY, SCHEDULE, convert, keys_of, parse_override
from nt_dist.config.settings import sections_of
from nt_dist.families import DEFAULT, make_config
from nt_dist.llama.weights import padded_vocab_size

ALL = sections_of(DEFAULT)
KEYS = [(name, entry) for name, section in ALL.items() for entry in keys_of(section)]


@pytest.mark.parametrize(("name", "entry"), KEYS)
def test_every_key_has_a_usable_default_a_sentence_and_a_mark(name, entry):
    setting = keys_of(ALL[name])[entry]
    assert convert(setting.default, setting.type) == setting.default
    rule = setting.metadata["rule"]
    assert rule is None or rule.holds(setting.default)
    assert setting.metadata["doc"].endswith(".")
    if get_origin(setting.type) is Literal:  # --help names the choices in the sentence alone
        assert all(choice in setting.metadata["doc"] for choice in get_args(setting.type))
    assert setting.metadata["mark"] in (IDENTITY, SCHEDULE, FREE)


def test_the_settled_keys_are_there():
    settled = {
        "model": "hidden_size ffn_size num_layers num_attention_heads num_kv_heads vocab_size max_seq_len norm_eps "
        "rope_theta",
        "trails": "count layers fork final_norm_twice",
        "sparsity": "density distribution storage topology_shards drop temperature grow drop_fraction drop_schedule "
        "update_every stop_fraction new_moments regrow_from exempt",
        "data": "source path subset text_key validation tokenizer layout num_workers prepared max_documents",
        "train": "steps batch_size micro_batch_size lr warmup_steps min_lr_ratio optimizer momentum nesterov betas "
        "adam_eps weight_decay grad_clip "
        "seed precision activation_checkpointing",
        "parallel": "tensor pipe trail",
        "run": "dir log_every eval_every eval_batches save_every keep keep_every resume_from stop_after "
        "allow_schedule_change",
    }
    for name, entries in settled.items():
        assert set(entries.split()) <= set(keys_of(ALL[name]))


def test_what_may_change_freely_is_what_does_not_change_the_training():
    marks = {f"{name}.{entry}": keys_of(ALL[name])[entry].metadata["mark"] for name, entry in KEYS}
    weighs_losses = {key: marks.pop(key) for key in [*marks] if key.startswith("trails.joint")}
    assert all(mark == IDENTITY for key, mark in marks.items() if key.startswith(("model.", "trails.")))
    assert set(weighs_losses.values()) == {SCHEDULE}
    assert all(mark == FREE for key, mark in marks.items() if key.startswith(("parallel.", "run.")))
    assert marks["sparsity.topology_shards"] == marks["sparsity.density"] == IDENTITY
    assert marks["sparsity.storage"] == marks["train.micro_batch_size"] == marks["data.num_workers"] == FREE
    assert marks["data.path"] == marks["data.validation"] == marks["data.max_documents"] == SCHEDULE
    assert marks["train.lr"] == marks["train.batch_size"] == marks["sparsity.update_every"] == SCHEDULE


def test_toml_reads_back_as_the_same_config():
    sections = {
        "data": {"source": "text", "path": ['a "b"/*.txt', "c\\d", "é–😀"], "validation": 0.125},
        "train": {"betas": [0.9, 0.95], "adam_eps": 1e-4, "activation_checkpointing": True, "seed": 2**63 - 1},
        "sparsity": {"exempt": ["embedding", "blocks.*.mlp.*"], "density": 1e-3},
    }
    config = make_config(sections)
    assert make_config(tomllib.loads(config.to_toml())) == config
    assert config.to_dict()["data"]["path"] == sections["data"]["path"]


def test_a_round_trip_keeps_the_deepspeed_configuration():
    config = make_config({"train": {"precision": "bf16"}}, {"zero_optimization": {"stage": 3}}, world_size=2)
    assert make_config(config.to_dict(), config.deepspeed, world_size=2) == config


def test_derived_values():
    config = make_config(
        {
            "model": {"hidden_size": 96, "ffn_size": 256, "num_attention_heads": 6, "num_kv_heads": 2},
            "sparsity": {"topology_shards": 16},
            "train": {"batch_size": 48, "micro_batch_size": 4},
        },
        {"zero_optimization": {"stage": 2}},
        world_size=3,
    )
    assert (config.data_degree, config.accumulation_steps, config.zero_stage) == (3, 4, 2)
    assert (config.model.head_size, config.model.key_value_heads, config.trunk_layers) == (16, 2, 2)
    assert padded_vocab_size(replace(config, model=replace(config.model, vocab_size=4097))) == 4112
    assert padded_vocab_size(replace(config, model=replace(config.model, vocab_size=4096))) == 4096
    assert make_config({}).model.key_value_heads == 4
    assert make_config({"trails": {"fork": "embedding"}}).trunk_layers == 0


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (1, bool),
        (1.0, int),
        (True, float),
        (float("nan"), float),
        (float("inf"), float),
        (10**400, float),
        ("1", float),
        (1, str),
        ("a\nb", str),
        ("a\udc80", str),
        ([1, "a"], tuple[float, float]),
        ([0.9], tuple[float, float]),
        ("a", tuple[str, ...]),
        (["a", 1], tuple[str, ...]),
        (3, tuple[int, ...]),
        ([1.0], str | float),
        ({"a": 1}, str),
    ],
)
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(TypeError):
        convert(value, kind)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("2", float, 2.0),
        ("true", bool, True),
        ("runs/a", str, "runs/a"),
        ("3", str, "3"),
        ('"a b"', str, "a b"),
        ("true", str, "true"),
        ("", str, ""),
        ("a=b", str, "a=b"),
        ("0.02", str | float, 0.02),
        ("texts/*.txt", str | float, "texts/*.txt"),
        ('["a", "b"]', str | tuple[str, ...], ("a", "b")),
        ("[0.9, 1]", tuple[float, float], (0.9, 1.0)),
    ],
)
def test_overrides_are_read_by_the_type_of_their_key(text, kind, value):
    read = parse_override(text, kind)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("text", "kind"), [("many", int), ("True", bool), ("[" * 5000, float), ("1\nx=2", int)])
def test_overrides_of_no_type_are_refused(text, kind):
    with pytest.raises(TypeError):
        parse_override(text, kind)


def test_no_torch():
    """A mistake in a config ends before the seconds that torch takes."""
    code = (
        "import sys, nt_dist.command_line, nt_dist.config, nt_dist.config.help, "
        "nt_dist.families; nt_dist.families.make_config({}); "
        "sys.exit(' '.join({'torch', 'deepspeed', 'numpy'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
