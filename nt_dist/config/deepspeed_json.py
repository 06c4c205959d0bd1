"""Joins the TOML with a DeepSpeed JSON: fills in "auto", names contradictions, refuses what is unknown or untested.

DeepSpeed ignores unknown keys at the top level without a word, so that a misspelling trains something else. Below
``zero_optimization`` it refuses them itself, but only after the seconds that importing torch takes. The keys are those
of DeepSpeed 0.19.8's ``runtime/config.py``, ``runtime/zero/config.py`` and ``runtime/precision_config.py``.
"""

from collections.abc import Mapping
from typing import Any, Literal

from nt_dist.config.keys import Rule, at_least, checked, hint, nearest, plain
from nt_dist.config.rules import BATCH_KEYS
from nt_dist.config.settings import Config

AUTO = "auto"
_STAGE, _BUCKET = "zero_optimization.stage", "zero_optimization.reduce_bucket_size"
_ACCUMULATED = "data_types.grad_accum_dtype"
_LEAST_BUCKET = 1 << 22  # elements: a small model's gradients travel in one message
_IN = " (DeepSpeed JSON)"

_UNTESTED = "it has not been tested together with topology updates"
_ONE_STEP = "a step would not be the same at every data degree"
_CHECKPOINTS = "checkpoints are nt_dist's own: set run.save_every, run.keep"
_OFFLOAD = f"offload: {_UNTESTED}"
_MOE = f"mixture of experts: {_UNTESTED}"
_TABLE: dict[str, dict[Any, str]] = {
    "": {
        int: "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print",
        float: "gradient_clipping gradient_predivide_factor",
        bool: "wall_clock_breakdown memory_breakdown dump_state disable_python_gc zero_allow_untested_optimizer "
        "managed_gradient_accumulation prescale_gradients disable_allgather",
        str: "communication_data_type gradient_allreduce_op",
        Literal["debug", "info", "warning", "error", "critical"]: "log_level",
        "the optimizer is nt_dist's AdamW: set train.lr, train.betas, train.adam_eps, train.weight_decay": "optimizer",
        "the schedule is nt_dist's: set train.lr, train.warmup_steps, train.min_lr_ratio": "scheduler",
        "training is in fp32 or bf16: set train.precision": "fp16 amp torch_autocast",
        'it is an old name: write "bf16"': "bfloat16",
        "it is nt_dist's own: set train.activation_checkpointing": "activation_checkpointing",
        "stages are nt_dist's own: set parallel.pipe": "pipeline",
        "tensor parallelism is nt_dist's own: set parallel.tensor": "tensor_parallel autotp_size",
        f"sequence parallelism: {_UNTESTED}": "sequence_parallel_size seq_parallel_communication_data_type",
        _MOE: "expert_parallel moe use_data_before_expert_parallelism",
        _OFFLOAD: "zero_force_ds_cpu_optimizer aio",
        "the order of samples is a function of train.seed and the sample's number alone": "data_efficiency "
        "curriculum_learning dataloader_drop_last",
        _UNTESTED: "progressive_layer_drop autotuning sparse_attention sparse_gradients hybrid_engine compile "
        "graph_harvesting",
        "metrics.jsonl and TensorBoard in run.dir are nt_dist's own": "tensorboard wandb csv_monitor comet",
        "nt_dist reports FLOP/s itself, dense-equivalent and sparse-effective": "flops_profiler",
        "nt_dist reports tokens per second itself": "timers",
        "any number of ranks continues from nt_dist's checkpoints": "elasticity",
        f"compression: {_UNTESTED}": "compression_training quantize_training weight_quantization eigenvalue",
        "the TOML has it: model.vocab_size": "vocabulary_size",
        _CHECKPOINTS: "checkpoint nebula datastates_ckpt",
    },
    "bf16": {
        bool: "enabled check_grad_overflow immediate_grad_update bf16_master_weights_and_grads bf16_optimizer_states",
    },
    "data_types": {
        str: "grad_accum_dtype",
        "the TOML has it: train.precision": "param_dtype",
        "buffers (index, rotary tables) keep their own types": "buffer_dtype keep_in_fp32_modules",
    },
    "comms_logger": {bool: "enabled verbose prof_all debug", tuple[str, ...]: "prof_ops"},
    "zero_optimization": {
        int: "stage reduce_bucket_size allgather_bucket_size sub_group_size stage3_prefetch_bucket_size "
        "stage3_param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters "
        "stage3_max_reuse_distance",
        bool: "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm "
        "compute_grad_norm round_robin_gradients parameter_alignment ignore_unused_parameters "
        "stage3_gather_16bit_weights_on_model_save stage3_allgather_sequential log_trace_cache_warnings "
        "enable_sanity_checks",
        _MOE: "leaf_module",
        _OFFLOAD: "offload_param offload_optimizer cpu_offload cpu_offload_param cpu_offload_use_pin_memory",
        _UNTESTED: "legacy_stage1 override_module_apply stage3_module_granularity_threshold "
        "stage3_use_all_reduce_for_fetch_params",
        _CHECKPOINTS: "elastic_checkpoint load_from_fp32_weights pipeline_loading_checkpoint",
        f"ZenFlow: {_UNTESTED}": "zenflow",
        f"quantized ZeRO (ZeRO++): {_UNTESTED}": "zero_hpz_partition_size zero_quantized_weights "
        "zero_quantized_nontrainable_weights zero_quantized_gradients zeropp_loco_param",
        f"MiCS: {_UNTESTED}": "mics_shard_size mics_hierarchical_params_gather",
        "nt_dist has its own matrix product": "memory_efficient_linear",
        "the optimizer is nt_dist's AdamW": "save_muon_momentum_buffer_in_memory",
    },
}
KEYS: dict[str, Any] = {
    f"{section}.{name}" if section else name: what
    for section, table in _TABLE.items()
    for what, names in table.items()
    for name in names.split()
}
"""Each key that DeepSpeed knows, or knew: the type that it may have in the JSON, or why it is refused."""

ONLY: dict[str, tuple[Any, str]] = {
    "communication_data_type": ("fp32", "gradients are summed in fp32"),
    "gradient_allreduce_op": ("mean", "the loss is scaled for the mean over the data ranks"),
    "managed_gradient_accumulation": (True, "train.batch_size decides when a step ends"),
    "prescale_gradients": (False, _ONE_STEP),
    "gradient_predivide_factor": (1.0, _ONE_STEP),
    "disable_allgather": (False, "weights have to reach all ranks"),
    "bf16.check_grad_overflow": (True, "a step on what is no number has to be skipped"),
    "bf16.immediate_grad_update": (False, _UNTESTED),
    "bf16.bf16_master_weights_and_grads": (False, "drop and regrow rank fp32 masters"),
    "bf16.bf16_optimizer_states": (False, "moments are fp32"),
    _ACCUMULATED: ("fp32", "gradients are accumulated in fp32"),
    "zero_optimization.compute_grad_norm": (True, "the norm is clipped and logged"),
    "zero_optimization.round_robin_gradients": (False, _UNTESTED),
    "zero_optimization.parameter_alignment": (False, _UNTESTED),
}
"""Keys that may stand in the JSON with one value only, and the reason."""

_NUMBERS = {
    "steps_per_print": at_least(1),
    _BUCKET: at_least(1),
    _STAGE: Rule("must be 0, 1, 2 or 3", lambda stage: stage in (0, 1, 2, 3)),
}
"""What numbers must keep that must not only be at least 0."""


def resolve(given: Any, config: Config, wrong: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Make the configuration that DeepSpeed is started with of what the JSON holds, None without one.

    Every "auto" is filled in, and what the TOML decides is added. Returns one message for each problem too; where there
    are any, the configuration is usable by other rules, not for training. The JSON is not compared with the keys of the
    TOML that are ``wrong``, whose values cannot be used.
    """
    if given is not None and not isinstance(given, Mapping):
        return resolve(None, config, wrong)[0], ["the DeepSpeed JSON must be an object, { … }"]
    values: dict[str, Any] = {}
    problems: list[str] = []
    _keep_typed(given or {}, "", values, problems)
    decided = _decided_by_toml(config, wrong)
    for dotted, (value, shown) in decided.items():
        said = values.get(dotted, AUTO)
        if said not in (AUTO, value) and value is not None and shown.partition(" = ")[0] not in wrong:
            sides = f"{dotted} = {said} of the DeepSpeed JSON contradicts {shown} of the TOML"
            problems.append(f'{sides}; write "auto" there')
    lowest = 1 if config.train.precision == "bf16" else 0
    if values.get(_STAGE, AUTO) == 0 < lowest:
        problems.append(
            "zero_optimization.stage = 0 of the DeepSpeed JSON contradicts train.precision = 'bf16' of the TOML: at "
            'stage 0 DeepSpeed accumulates the gradients in bf16; use stage 1, 2 or 3, or write "auto" there'
        )
    hidden_size = config.family.hidden_size(config)
    fillings = {dotted: value for dotted, (value, _) in decided.items()} | {
        _STAGE: lowest,
        _ACCUMULATED: "fp32",
        _BUCKET: max(hidden_size**2, _LEAST_BUCKET),  # elements, as below by the rules of Hugging Face's integration
        "zero_optimization.stage3_prefetch_bucket_size": hidden_size**2 * 9 // 10,
        "zero_optimization.stage3_param_persistence_threshold": 10 * hidden_size,
    }
    resolved: dict[str, Any] = {}
    for dotted, said in {**dict.fromkeys([*decided, _STAGE, _BUCKET, _ACCUMULATED], AUTO), **values}.items():
        value = fillings.get(dotted, AUTO) if said == AUTO else said
        only, reason = ONLY.get(dotted, (value, ""))
        if value == AUTO and reason:
            continue  # as where it is not named
        if value == AUTO:
            problems.append(f"{dotted} = 'auto': the TOML has no setting for it{_IN}")
        elif value != only:
            problems.append(f"{dotted} = {value!r} must be {only!r}: {reason}{_IN}")
        section, _, name = dotted.rpartition(".")
        (resolved.setdefault(section, {}) if section else resolved)[name] = value
    return resolved, problems


def _keep_typed(given: Mapping[str, Any], prefix: str, values: dict[str, Any], problems: list[str]) -> None:
    """Keep the entries that are known and of the right type; what is refused but off is dropped."""
    for name, value in given.items():
        dotted = prefix + name
        what = None if "." in name else KEYS.get(dotted)  # such a name only looks like one in a section
        if isinstance(what, str):
            if not _is_off(value):
                problems.append(f"{dotted} is refused: {what}{_IN}")
        elif what is None and dotted in _TABLE:
            if isinstance(value, Mapping):
                _keep_typed(value, f"{dotted}.", values, problems)
            else:
                problems.append(f"{dotted} = {value!r} must be an object, {{ … }}{_IN}")
        elif what is None:
            problems.append(f"{dotted} is no setting of DeepSpeed's{hint(nearest(dotted, [*KEYS, *_TABLE]))}{_IN}")
        elif value == AUTO:
            values[dotted] = value
        else:
            if what is int and isinstance(value, float) and value.is_integer():
                value = int(value)  # DeepSpeed's own documents write 5e8
            rule = _NUMBERS.get(dotted, at_least(0)) if what in (int, float) else None
            try:
                values[dotted] = plain(checked(dotted, value, what, rule))
            except ValueError as problem:
                problems.append(f"{problem}{_IN}")


def _is_off(value: Any) -> bool:
    """Whether a refused feature is only mentioned: Hugging Face's examples name many that they switch off."""
    if isinstance(value, Mapping):
        return value.get("enabled", value.get("device", True)) in (False, "none", AUTO)
    return value is None or value is False or (type(value) is int and value <= 1)  # a degree of 1


def _decided_by_toml(config: Config, wrong: set[str]) -> dict[str, tuple[Any, str]]:
    """What the TOML decides, by its key in the JSON: the value (None if it cannot), and how the TOML says it."""
    train, micro = config.train, config.train.micro_batch_size
    unit = micro * config.data_degree
    divides = unit and train.batch_size % unit == 0  # else a rule of its own says what does not divide
    steps = config.accumulation_steps if divides and not wrong.intersection(BATCH_KEYS) else None
    return {
        "train_batch_size": (train.batch_size, f"train.batch_size = {train.batch_size}"),
        "train_micro_batch_size_per_gpu": (micro, f"train.micro_batch_size = {micro}"),
        "gradient_accumulation_steps": (steps, f"train.batch_size / (train.micro_batch_size × data degree) = {steps}"),
        "gradient_clipping": (train.grad_clip, f"train.grad_clip = {train.grad_clip}"),
        "bf16.enabled": (train.precision == "bf16", f"train.precision = {train.precision!r}"),
    }
