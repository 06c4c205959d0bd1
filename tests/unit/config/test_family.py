"""Two families in one trainer: each with its own keys, and a word on whose a misplaced key is."""

from dataclasses import dataclass

import pytest

from nt_dist.config import load
from nt_dist.config.family import Family
from nt_dist.config.help import help_text, markdown_table
from nt_dist.config.keys import at_least, free, identity
from nt_dist.errors import ConfigError
from nt_dist.families import FAMILIES


@dataclass(frozen=True)
class Network:
    """A network of images."""

    family: str = identity("tiny", "Kind of network.")
    num_layers: int = identity(8, "Blocks.", at_least(1))
    channels: int = identity(16, "Channels.", at_least(1))


@dataclass(frozen=True)
class Images:
    """The images."""

    folder: str = free("", "Where they are.")


class Tiny(Family):
    """A family that shares no key with the LLaMA but the number of layers."""

    name = "tiny"
    sections = {"model": Network, "data": Images}  # noqa: RUF012
    rules = ()

    def hidden_size(self, config):
        return config.model.channels

    def divided_by_tensor(self, config):
        return {"model.channels": config.model.channels}

    def paths(self, config):
        return [("data.folder", config.data.folder)]

    def weight_names(self, config):
        return ["stem"]


Tiny.__abstractmethods__ = frozenset()  # a config asks for nothing of what is left out
BOTH = {"llama": FAMILIES["llama"], "tiny": Tiny()}


def build(model, data=None, world_size=1, json=None, **sections):
    contents = {"model": model, "data": data or {}, **sections}
    return load.load_config(BOTH, contents, (), json, world_size, check_paths=False)


def problems_of(call, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return caught.value.problems


def test_each_family_has_its_own_keys_and_defaults():
    config = build({"family": "tiny", "channels": 32}, {"folder": "x"})
    assert (config.model, config.data) == (Network("tiny", 8, 32), Images("x"))
    assert config.to_dict()["model"] == {"family": "tiny", "num_layers": 8, "channels": 32}
    assert build({}).family.name == "llama"


def test_a_key_of_another_family_is_named_as_such():
    found = problems_of(build, {"family": "tiny", "hidden_size": 64, "chanels": 8}, {"tokenizer": "auto"})
    assert found == [
        "model.hidden_size is no setting of model.family = 'tiny' but of 'llama'; did you mean model.channels?",
        "model.chanels is no setting; did you mean model.channels?",
        "data.tokenizer is no setting of model.family = 'tiny' but of 'llama'; did you mean data.folder?",
    ]
    (found,) = problems_of(build, {"channels": 8})
    assert found.startswith("model.channels is no setting of model.family = 'llama' but of 'tiny'; did you mean model.")
    (found,) = problems_of(build, {"family": "tiny", "num_attention_channels": 8})
    assert found.endswith("is no setting; did you mean model.channels?")


def test_a_family_that_is_none_is_named_with_those_there_are():
    (found,) = problems_of(build, {"family": "tny", "channels": 8})  # whose keys are those of the nearest
    assert found == "model.family = 'tny' must be one of llama, tiny; did you mean tiny?"
    (found,) = problems_of(build, {"family": 3})
    assert found == "model.family = 3 must be a string"


def test_the_command_line_may_choose_the_family_wherever_it_says_so(tmp_path):
    (tmp_path / "a.toml").write_text("[model]\nfamily = 'llama'\n")
    config = load.load_config(BOTH, tmp_path / "a.toml", ["model.channels=4", "model.family=tiny"])
    assert config.model.channels == 4
    (found,) = problems_of(load.load_config, BOTH, tmp_path / "a.toml", ["model.channels=4"])
    assert found.startswith("model.channels is no setting of model.family = 'llama' but of 'tiny'")


def test_rules_read_the_family():
    found = problems_of(build, {"family": "tiny", "channels": 9}, world_size=2, parallel={"tensor": 2})
    assert found[0] == "parallel.tensor = 2 must divide model.channels = 9"
    found = load.missing_paths(build({"family": "tiny"}, {"folder": "no/such"}))
    assert found == ["data.folder = 'no/such': no such file or folder"]
    automatic = {"zero_optimization": {"stage3_param_persistence_threshold": "auto"}}
    resolved = build({"family": "tiny"}, json=automatic).deepspeed["zero_optimization"]
    assert resolved["stage3_param_persistence_threshold"] == 160


def test_help_and_table_show_the_keys_by_family():
    text = help_text(BOTH.values())
    assert text.count("[model] of the family ") == text.count("[data] of the family ") == 2
    assert "[model] of the family tiny: A network of images.\n  family" in text
    assert text.count("[train] ") == 1
    assert text.index("hidden_size") < text.index("channels") < text.index("[trails]")
    rows = markdown_table(BOTH.values()).splitlines()
    assert "| `model.channels` (tiny) | `16` | identity | Channels. Must be at least 1. |" in rows
