"""The manifest's text: what is written is read, and nothing else is believed."""

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nt_dist.checkpoint.manifest import (
    FileEntry,
    FragmentEntry,
    Manifest,
    TrainingState,
    VersionError,
    WeightEntry,
    _digest,
    parse_manifest,
    read_manifest,
)
from nt_dist.errors import CheckpointError

MANIFEST = Manifest(
    serial=3,
    saved_at="2030-01-01T00:00:00+00:00",
    written_by="0.1.0",
    training_state=TrainingState(10, 320, 9, "abc", {"skipped": [1, {"a": None}]}),
    moments=("momentum_buffer",),
    layout={"data": 2},
    config={"train": {"lr": 1e-3, "betas": [0.9, 0.95]}},
    files={"state-00000.safetensors": FileEntry(100, "ab"), "config.toml": FileEntry(7, "cd")},
    weights={
        "up": WeightEntry(
            (4, 6), 0, 1, 2, 3, 0.5, (6, 3), {f"0/{s}": FragmentEntry("state-00000.safetensors", "12") for s in (0, 1)}
        ),
        "norm": WeightEntry((4,), 0, 1, 1, 4, 1.0, (4,), {"0/0": FragmentEntry("state-00000.safetensors", None)}),
    },
)


def signed(content):
    """The text of a manifest with ``content`` and the digest that belongs to it."""
    content.pop("digest", None)
    return json.dumps({**content, "digest": _digest(content)}).encode()


def test_what_is_written_is_read():
    assert parse_manifest(MANIFEST.to_json().encode(), "m") == MANIFEST


def test_a_manifest_of_before_there_was_sgd_is_of_adamw():
    content = json.loads(MANIFEST.to_json())
    del content["moments"]
    assert parse_manifest(signed(content), "m") == replace(MANIFEST, moments=("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("name", ["step", "consumed_samples", "adam_step", "serial"])
def test_a_number_that_nothing_counts_to_is_refused(name):
    content = json.loads(MANIFEST.to_json()) | {name: 2**80}
    with pytest.raises(CheckpointError, match=name):
        parse_manifest(signed(content), "m")


def test_a_changed_number_is_noticed():
    text = MANIFEST.to_json().replace('"step": 10', '"step": 11')
    with pytest.raises(CheckpointError, match=r"some/manifest.json: damaged: its content does not match its digest"):
        parse_manifest(text.encode(), "some/manifest.json")


def test_another_version_is_told_from_damage():
    content = json.loads(MANIFEST.to_json()) | {"version": 2}
    with pytest.raises(VersionError, match="format version 2; this program reads version 1"):
        parse_manifest(json.dumps(content).encode(), "m")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"format": "other"}', b"[" * 100_000])
def test_what_is_no_manifest_is_damaged(text):
    with pytest.raises(CheckpointError, match="^m: damaged"):
        parse_manifest(text, "m")


def test_a_missing_manifest_is_an_unfinished_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/manifest.json: missing: not a checkpoint"):
        read_manifest(tmp_path)


WEIGHT = ("weights", "up")


@pytest.mark.parametrize(
    ("keys", "value", "rule"),
    [
        (("step",), True, "step: Input should be a valid integer"),
        (("step",), -1, "step: Input should be greater than or equal to 0"),
        (("extra",), [], "extra: Input should be a valid dictionary"),
        (("moments",), ["../evil"], "moments: Value error, must be a list of names"),
        (("moments",), None, "moments: Input should be a valid tuple"),
        (("moments",), ["value"], "none of them value or positions"),
        (("moments",), ["exp_avg", "exp_avg"], "moments: Value error, must be different names"),
        (("data_digest",), 5, "data_digest: Input should be a valid string"),
        (("config", "train"), 5, "config.train: Input should be a valid dictionary"),
        (("files", "../evil"), {"size": 1, "sha256": ""}, "a plain file name"),
        (("files", "/etc/passwd"), {"size": 1, "sha256": ""}, "a plain file name"),
        (("files", "manifest.json"), {"size": 1, "sha256": ""}, "a plain file name"),
        (("files", "x"), None, "files.x: Input should be"),
        (("files", "x"), {"size": "1", "sha256": ""}, "files.x.size: Input should be a valid integer"),
        ((*WEIGHT,), 1, "weights.up: Input should be"),
        ((*WEIGHT, "shape"), [4, -6], "weights.up.shape.1: Input should be greater than or equal to 0"),
        ((*WEIGHT, "shape"), [], "weights.up.shape: Tuple should have at least 1 item"),
        ((*WEIGHT, "shape"), [1 << 20, 1 << 20], "positions are int32"),
        ((*WEIGHT, "cut_axis"), 2, "cut_axis must be an axis"),
        ((*WEIGHT, "shards"), 0, "weights.up.shards: Input should be greater than or equal to 1"),
        ((*WEIGHT, "shards"), 3, "one number for each shard"),
        ((*WEIGHT, "slots"), [6, 13], "within a shard"),
        ((*WEIGHT, "trails"), 10**9, "one for each trail and shard"),
        ((*WEIGHT, "density"), 1, "weights.up.density: Input should be an instance of float"),
        (
            (*WEIGHT, "fragments", "0/2"),
            {"file": "state-00000.safetensors", "checksum": "12"},
            "one for each trail and shard",
        ),
        ((*WEIGHT, "fragments", "0/1"), None, "weights.up.fragments.0/1: Input should be"),
        ((*WEIGHT, "fragments", "0/1", "file"), "state-00001.safetensors", "one of the checkpoint's files"),
        ((*WEIGHT, "fragments", "0/1", "checksum"), None, "text"),
        ((*WEIGHT, "is_statistic"), 1, "weights.up.is_statistic: Input should be a valid boolean"),
        ((*WEIGHT, "shape"), "46", "weights.up.shape: Input should be a valid tuple"),
        ((*WEIGHT, "slots"), ["6", 3], "weights.up.slots.0: Input should be a valid integer"),
        (("serial",), 3.0, "serial: Input should be a valid integer"),
        (("weights", "norm", "fragments", "0/0", "checksum"), "12", "null in a dense weight"),
    ],
)
def test_a_malformed_entry_is_named(keys, value, rule):
    content = json.loads(MANIFEST.to_json())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(CheckpointError, match="^m: malformed: ") as caught:
        parse_manifest(signed(content), "m")
    assert rule in str(caught.value)


def paths_in(content, prefix=()):
    """Every path to a value in parsed JSON."""
    yield prefix
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from paths_in(value, (*prefix, key))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = [path for path in paths_in(json.loads(MANIFEST.to_json())) if path and path != ("digest",)]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(PATHS), ANYTHING, st.booleans())
def test_any_signed_content_is_read_or_refused(path, value, remove):
    """Whatever stands in any place: a manifest or a CheckpointError, never another exception."""
    content = json.loads(MANIFEST.to_json())
    place = content
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    try:
        found = parse_manifest(signed(content), "m")
    except CheckpointError as error:
        assert str(error).startswith("m: ")
    else:
        assert parse_manifest(found.to_json().encode(), "m") == found


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=60), st.integers(0, 3000))
def test_any_damage_to_the_text_is_refused(inserted, at):
    text = MANIFEST.to_json().encode()
    damaged = text[:at] + inserted + text[at + len(inserted) :]
    with contextlib.suppress(CheckpointError):
        assert parse_manifest(damaged, "m") == MANIFEST  # the damage was in the white space


def test_what_json_cannot_hold_is_refused():
    broken = replace(MANIFEST, training_state=replace(MANIFEST.training_state, extra={"when": object()}))
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        broken.to_json()
