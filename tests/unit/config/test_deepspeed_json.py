"""The DeepSpeed JSON: "auto", contradictions, unknown and refused keys, against the DeepSpeed that is installed."""

import pytest

from nt_dist.config.deepspeed_json import _TABLE, KEYS, ONLY
from nt_dist.errors import ConfigError
from nt_dist.families import make_config

REFUSED = {dotted: reason for dotted, reason in KEYS.items() if isinstance(reason, str)}


def resolved(json, world_size=1, **train):
    return make_config({"train": train} if train else {}, json, world_size).deepspeed


def problems_of(json, world_size=1, **train):
    with pytest.raises(ConfigError) as caught:
        resolved(json, world_size, **train)
    return caught.value.problems


def test_auto_is_filled_from_the_toml():
    json = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "data_types": {"grad_accum_dtype": "auto"},
        "communication_data_type": "auto",
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        },
    }
    train = {"batch_size": 64, "micro_batch_size": 8, "grad_clip": 0.5, "precision": "bf16"}
    expected = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 2**22,
            "stage3_prefetch_bucket_size": 14745,
            "stage3_param_persistence_threshold": 1280,
        },
    }
    assert resolved(json, world_size=2, **train) == expected
    assert resolved({"zero_optimization": json["zero_optimization"]}, world_size=2, **train) == expected


def test_without_a_json_the_stage_follows_the_precision():
    """DeepSpeed 0.19.8 has no fp32 accumulation of bf16 gradients at stage 0."""
    assert resolved(None)["zero_optimization"]["stage"] == 0
    assert resolved(None, precision="bf16")["zero_optimization"]["stage"] == 1
    assert resolved({"zero_optimization": {"stage": "auto"}}, precision="bf16")["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize(
    ("json", "train", "both"),
    [
        ({"train_batch_size": 64}, {}, ("train_batch_size = 64", "train.batch_size = 32")),
        (
            {"train_micro_batch_size_per_gpu": 8},
            {},
            ("train_micro_batch_size_per_gpu = 8", "train.micro_batch_size = 16"),
        ),
        ({"gradient_accumulation_steps": 4}, {}, ("gradient_accumulation_steps = 4", "data degree) = 2")),
        ({"gradient_clipping": 1}, {}, ("gradient_clipping = 1.0", "train.grad_clip = 0.0")),
        ({"bf16": {"enabled": True}}, {}, ("bf16.enabled = True", "train.precision = 'fp32'")),
        ({"bf16": {"enabled": False}}, {"precision": "bf16"}, ("bf16.enabled = False", "train.precision = 'bf16'")),
        (
            {"zero_optimization": {"stage": 0}},
            {"precision": "bf16"},
            ("zero_optimization.stage = 0", "train.precision = 'bf16'"),
        ),
    ],
)
def test_a_contradiction_names_both_sides(json, train, both):
    (found,) = problems_of(json, **train)
    assert all(side in found for side in both) and "contradicts" in found


def test_saying_the_same_is_no_contradiction():
    json = {
        "train_batch_size": 32,
        "gradient_clipping": 1,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": False},
    }
    assert resolved(json, grad_clip=1.0)["gradient_clipping"] == 1.0


def test_settings_that_are_wrong_are_not_compared():
    (found,) = problems_of({"train_batch_size": 64, "gradient_accumulation_steps": 8}, batch_size=-1)
    assert found == "train.batch_size = -1 must be at least 1"
    (found,) = problems_of({"gradient_accumulation_steps": "auto"}, batch_size=30)
    assert found.startswith("train.batch_size = 30 must be a multiple")


@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation is no setting of DeepSpeed's; did you mean zero_optimization?"),
        ({"zero_optimization": {"stag": 1}}, "zero_optimization.stag is no setting of DeepSpeed's; did you mean"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage = 4 must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage = True must be an integer"),
        ({"zero_optimization": True}, "zero_optimization = True must be an object"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "must be at least 1"),
        ({"zero_optimization": {"overlap_comm": "auto"}}, "overlap_comm = 'auto': the TOML has no setting for it"),
        ({"steps_per_print": -1}, "steps_per_print = -1 must be at least 1"),
        ({"log_level": "loud"}, "log_level = 'loud' must be one of debug"),
        ({"wall_clock_breakdown": "yes"}, "wall_clock_breakdown = 'yes' must be true or false"),
        (
            {"comms_logger": {"enabled": True, "prof_ops": "all_reduce"}},
            "prof_ops = 'all_reduce' must be a list of strings",
        ),
        ({"prescale_gradients": True}, "prescale_gradients = True must be False"),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow = False must be True"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype = 'bf16' must be 'fp32'"),
        ({"bf16": {"bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states = True must be False"),
    ],
)
def test_what_is_unknown_or_wrong(json, message):
    (found,) = problems_of(json)
    assert message in found and found.endswith("(DeepSpeed JSON)")


@pytest.mark.parametrize("dotted", REFUSED)
def test_each_refused_feature_is_named_with_its_reason(dotted):
    section, _, name = dotted.rpartition(".")
    value = {"enabled": True, "device": "cpu"}
    (found,) = problems_of({section: {name: value}} if section else {name: value})
    assert found == f"{dotted} is refused: {REFUSED[dotted]} (DeepSpeed JSON)"


def test_features_that_are_switched_off_are_dropped():
    json = {
        "fp16": {"enabled": "auto"},
        "tensorboard": {"enabled": False},
        "amp": {"enabled": False},
        "sparse_gradients": False,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "none"},
            "zero_quantized_weights": False,
            "zero_hpz_partition_size": 1,
            "reduce_bucket_size": 5e8,
        },
    }
    kept = resolved(json)
    assert kept["zero_optimization"].items() >= {"stage": 2, "reduce_bucket_size": 500_000_000}.items()
    assert not {"offload_optimizer", "zero_quantized_weights", "zero_hpz_partition_size"} & set(
        kept["zero_optimization"]
    )
    assert not {"fp16", "tensorboard", "amp", "sparse_gradients"} & set(kept)
    assert "hpz" in problems_of({"zero_optimization": {"zero_hpz_partition_size": 2}})[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_takes_what_is_resolved(precision, stage):
    from deepspeed.runtime.config import DeepSpeedConfig

    if precision == "bf16" and stage == 0:
        assert problems_of({"zero_optimization": {"stage": 0}}, precision="bf16")
        return
    taken = DeepSpeedConfig(resolved({"zero_optimization": {"stage": stage}}, precision=precision, grad_clip=0.0))
    assert taken.zero_optimization_stage == stage
    assert taken.gradient_clipping == 0.0  # not DeepSpeed's default, which clips at 1
    assert taken.bfloat16_config.enabled == (precision == "bf16")
    assert taken.grad_accum_dtype == "fp32"


def test_the_tables_know_every_key_of_this_deepspeed():
    """A key that a later DeepSpeed adds or drops is seen here first."""
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    renamed = {"stage3_gather_fp16_weights_on_model_save"}  # a deprecated spelling, for which the new one is asked
    assert _below("zero_optimization") - _below("zero_optimization", REFUSED) <= zero
    assert zero - renamed <= _below("zero_optimization")
    assert _below("bf16") == set(DeepSpeedBF16Config.model_fields)
    removed = {*_REMOVED_TOP_LEVEL_CONFIG_KEYS, *(f"zero_optimization.{key}" for key in _REMOVED_ZERO_CONFIG_KEYS)}
    assert removed <= set(REFUSED)


def _below(section, keys=KEYS):
    return {dotted.removeprefix(f"{section}.") for dotted in keys if dotted.startswith(f"{section}.")}


def test_no_key_is_both_allowed_and_refused():
    assert len(KEYS) == sum(len(names.split()) for table in _TABLE.values() for names in table.values())
    assert set(ONLY) <= set(KEYS) - set(REFUSED)


def test_a_dot_in_a_name_leads_into_no_section():
    (found,) = problems_of({"zero_optimization.stage": 2})
    assert found.startswith("zero_optimization.stage is no setting of DeepSpeed's")
