"""What of DeepSpeed 0.19.8's JSON is accepted, what is refused, and why.

DeepSpeed ignores unknown top-level keys without a word, so that a misspelling trains something else. Read in its
``runtime/config.py``, ``runtime/zero/config.py`` and ``runtime/precision_config.py``.
"""

from typing import Any


def _of(kind: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


ALLOWED: dict[str, Any] = {
    **_of(int, "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print"),
    **_of(float, "gradient_clipping gradient_predivide_factor"),
    **_of(
        bool,
        "wall_clock_breakdown memory_breakdown dump_state disable_python_gc zero_allow_untested_optimizer "
        "managed_gradient_accumulation prescale_gradients disable_allgather",
    ),
    **_of(str, "log_level communication_data_type gradient_allreduce_op"),
    "bf16": {
        **_of(
            bool,
            "enabled check_grad_overflow immediate_grad_update bf16_master_weights_and_grads bf16_optimizer_states",
        ),
    },
    "data_types": {
        "grad_accum_dtype": str,
    },
    "comms_logger": {
        **_of(bool, "enabled verbose prof_all debug"),
        "prof_ops": tuple[str, ...],
    },
    "zero_optimization": {
        **_of(
            int,
            "stage reduce_bucket_size allgather_bucket_size sub_group_size stage3_prefetch_bucket_size "
            "stage3_param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters "
            "stage3_max_reuse_distance",
        ),
        **_of(
            bool,
            "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm "
            "compute_grad_norm round_robin_gradients parameter_alignment ignore_unused_parameters "
            "stage3_gather_16bit_weights_on_model_save stage3_allgather_sequential log_trace_cache_warnings "
            "enable_sanity_checks",
        ),
    },
}
"""Keys that may stand in the JSON, with their types; a section has keys of its own."""

ONLY: dict[str, tuple[Any, str]] = {
    "communication_data_type": ("fp32", "gradients are summed in fp32"),
    "gradient_allreduce_op": ("mean", "the loss is scaled for the mean over the data ranks"),
    "managed_gradient_accumulation": (True, "train.batch_size decides when a step ends"),
    "prescale_gradients": (False, "a step would not be the same at every data degree"),
    "gradient_predivide_factor": (1.0, "a step would not be the same at every data degree"),
    "disable_allgather": (False, "weights have to reach all ranks"),
    "bf16.check_grad_overflow": (True, "a step on what is no number has to be skipped"),
    "bf16.immediate_grad_update": (False, "it has not been tested together with topology updates"),
    "bf16.bf16_master_weights_and_grads": (False, "drop and regrow rank fp32 masters"),
    "bf16.bf16_optimizer_states": (False, "moments are fp32"),
    "data_types.grad_accum_dtype": ("fp32", "gradients are accumulated in fp32"),
    "zero_optimization.compute_grad_norm": (True, "the norm is clipped and logged"),
    "zero_optimization.round_robin_gradients": (False, "it has not been tested together with topology updates"),
    "zero_optimization.parameter_alignment": (False, "it has not been tested together with topology updates"),
}
"""Keys that may stand in the JSON with one value only, and the reason."""

AT_LEAST_ONE = ("steps_per_print", "zero_optimization.reduce_bucket_size")
"""Numbers that must not be 0."""

CHOICES: dict[str, tuple[str, ...]] = {"log_level": ("debug", "info", "warning", "error", "critical")}
"""Words that may stand there."""

_UNTESTED = "it has not been tested together with topology updates"
_OFFLOAD = f"offload: {_UNTESTED}"
_MOE = f"mixture of experts: {_UNTESTED}"
_QUANTIZED = f"quantized ZeRO (ZeRO++): {_UNTESTED}"
_TENSOR = "tensor parallelism is nt_dist's own: set parallel.tensor"
_CURRICULUM = "the order of samples is a function of train.seed and the sample's number alone"
_MONITOR = "metrics.jsonl and TensorBoard in run.dir are nt_dist's own"
_CHECKPOINT = "checkpoints are nt_dist's own: set run.save_every, run.keep"
_COMPRESSION = f"compression: {_UNTESTED}"

_REFUSED: dict[str, str] = {
    "the optimizer is nt_dist's AdamW: set train.lr, train.betas, train.adam_eps, train.weight_decay": "optimizer",
    "the schedule is nt_dist's: set train.lr, train.warmup_steps, train.min_lr_ratio": "scheduler",
    "training is in fp32 or bf16: set train.precision": "fp16 amp torch_autocast",
    'it is an old name: write "bf16"': "bfloat16",
    "it is nt_dist's own: set train.activation_checkpointing": "activation_checkpointing",
    "stages are nt_dist's own: set parallel.pipe": "pipeline",
    _TENSOR: "tensor_parallel autotp_size",
    f"sequence parallelism: {_UNTESTED}": "sequence_parallel_size seq_parallel_communication_data_type",
    _MOE: "expert_parallel moe use_data_before_expert_parallelism zero_optimization.leaf_module",
    _OFFLOAD: (
        "zero_force_ds_cpu_optimizer aio zero_optimization.offload_param zero_optimization.offload_optimizer "
        "zero_optimization.cpu_offload zero_optimization.cpu_offload_param "
        "zero_optimization.cpu_offload_use_pin_memory"
    ),
    _CURRICULUM: "data_efficiency curriculum_learning dataloader_drop_last",
    _UNTESTED: (
        "progressive_layer_drop autotuning sparse_attention sparse_gradients hybrid_engine compile graph_harvesting "
        "zero_optimization.legacy_stage1 zero_optimization.override_module_apply "
        "zero_optimization.stage3_module_granularity_threshold "
        "zero_optimization.stage3_use_all_reduce_for_fetch_params"
    ),
    _MONITOR: "tensorboard wandb csv_monitor comet",
    "nt_dist reports FLOP/s itself, dense-equivalent and sparse-effective": "flops_profiler",
    "nt_dist reports tokens per second itself": "timers",
    "any number of ranks continues from nt_dist's checkpoints": "elasticity",
    _COMPRESSION: "compression_training quantize_training weight_quantization eigenvalue",
    "the TOML has it: model.vocab_size": "vocabulary_size",
    _CHECKPOINT: (
        "checkpoint nebula datastates_ckpt zero_optimization.elastic_checkpoint "
        "zero_optimization.load_from_fp32_weights zero_optimization.pipeline_loading_checkpoint"
    ),
    f"ZenFlow: {_UNTESTED}": "zero_optimization.zenflow",
    _QUANTIZED: (
        "zero_optimization.zero_hpz_partition_size zero_optimization.zero_quantized_weights "
        "zero_optimization.zero_quantized_nontrainable_weights zero_optimization.zero_quantized_gradients "
        "zero_optimization.zeropp_loco_param"
    ),
    f"MiCS: {_UNTESTED}": "zero_optimization.mics_shard_size zero_optimization.mics_hierarchical_params_gather",
    "nt_dist has its own matrix product": "zero_optimization.memory_efficient_linear",
    "the optimizer is nt_dist's AdamW": "zero_optimization.save_muon_momentum_buffer_in_memory",
    "the TOML has it: train.precision": "data_types.param_dtype",
    "buffers (index, rotary tables) keep their own types": "data_types.buffer_dtype data_types.keep_in_fp32_modules",
}
REFUSED: dict[str, str] = {key: reason for reason, keys in _REFUSED.items() for key in keys.split()}
"""Keys that DeepSpeed knows, or knew, and nt_dist refuses, with the reason."""
