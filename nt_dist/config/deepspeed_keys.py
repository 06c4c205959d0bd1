"""What of DeepSpeed 0.19.8's JSON is accepted, what is refused, and why.

DeepSpeed ignores unknown top-level keys without a word, so that a misspelling trains something else. Read in its
``runtime/config.py``, ``runtime/zero/config.py`` and ``runtime/precision_config.py``.
"""

from typing import Any

ALLOWED: dict[str, Any] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": float,
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "zero_allow_untested_optimizer": bool,
    "log_level": str,
    "communication_data_type": str,
    "gradient_allreduce_op": str,
    "managed_gradient_accumulation": bool,
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "disable_allgather": bool,
    "bf16": {
        "enabled": bool,
        "check_grad_overflow": bool,
        "immediate_grad_update": bool,
        "bf16_master_weights_and_grads": bool,
        "bf16_optimizer_states": bool,
    },
    "data_types": {"grad_accum_dtype": str},
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "prof_ops": tuple[str, ...], "debug": bool},
    "zero_optimization": {
        "stage": int,
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "reduce_bucket_size": int,
        "use_multi_rank_bucket_allreduce": bool,
        "allgather_partitions": bool,
        "allgather_bucket_size": int,
        "overlap_comm": bool,
        "compute_grad_norm": bool,
        "round_robin_gradients": bool,
        "parameter_alignment": bool,
        "ignore_unused_parameters": bool,
        "sub_group_size": int,
        "stage3_prefetch_bucket_size": int,
        "stage3_param_persistence_threshold": int,
        "stage3_model_persistence_threshold": int,
        "stage3_max_live_parameters": int,
        "stage3_max_reuse_distance": int,
        "stage3_gather_16bit_weights_on_model_save": bool,
        "stage3_allgather_sequential": bool,
        "log_trace_cache_warnings": bool,
        "enable_sanity_checks": bool,
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

REFUSED: dict[str, str] = {
    "optimizer": "the optimizer is nt_dist's AdamW: set train.lr, train.betas, train.adam_eps, train.weight_decay",
    "scheduler": "the schedule is nt_dist's: set train.lr, train.warmup_steps, train.min_lr_ratio",
    "fp16": "training is in fp32 or bf16: set train.precision",
    "amp": "training is in fp32 or bf16: set train.precision",
    "torch_autocast": "training is in fp32 or bf16: set train.precision",
    "bfloat16": 'it is an old name: write "bf16"',
    "activation_checkpointing": "it is nt_dist's own: set train.activation_checkpointing",
    "pipeline": "stages are nt_dist's own: set parallel.pipe",
    "tensor_parallel": _TENSOR,
    "autotp_size": _TENSOR,
    "sequence_parallel_size": f"sequence parallelism: {_UNTESTED}",
    "seq_parallel_communication_data_type": f"sequence parallelism: {_UNTESTED}",
    "expert_parallel": _MOE,
    "moe": _MOE,
    "use_data_before_expert_parallelism": _MOE,
    "zero_force_ds_cpu_optimizer": _OFFLOAD,
    "aio": _OFFLOAD,
    "data_efficiency": _CURRICULUM,
    "curriculum_learning": _CURRICULUM,
    "dataloader_drop_last": _CURRICULUM,
    "progressive_layer_drop": _UNTESTED,
    "tensorboard": _MONITOR,
    "wandb": _MONITOR,
    "csv_monitor": _MONITOR,
    "comet": _MONITOR,
    "flops_profiler": "nt_dist reports FLOP/s itself, dense-equivalent and sparse-effective",
    "timers": "nt_dist reports tokens per second itself",
    "autotuning": _UNTESTED,
    "elasticity": "any number of ranks continues from nt_dist's checkpoints",
    "compression_training": _COMPRESSION,
    "quantize_training": _COMPRESSION,
    "weight_quantization": _COMPRESSION,
    "eigenvalue": _COMPRESSION,
    "sparse_attention": _UNTESTED,
    "sparse_gradients": _UNTESTED,
    "hybrid_engine": _UNTESTED,
    "compile": _UNTESTED,
    "graph_harvesting": _UNTESTED,
    "vocabulary_size": "the TOML has it: model.vocab_size",
    "checkpoint": _CHECKPOINT,
    "nebula": _CHECKPOINT,
    "datastates_ckpt": _CHECKPOINT,
    "zero_optimization.offload_param": _OFFLOAD,
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_param": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _OFFLOAD,
    "zero_optimization.zenflow": f"ZenFlow: {_UNTESTED}",
    "zero_optimization.zero_hpz_partition_size": _QUANTIZED,
    "zero_optimization.zero_quantized_weights": _QUANTIZED,
    "zero_optimization.zero_quantized_nontrainable_weights": _QUANTIZED,
    "zero_optimization.zero_quantized_gradients": _QUANTIZED,
    "zero_optimization.zeropp_loco_param": _QUANTIZED,
    "zero_optimization.mics_shard_size": f"MiCS: {_UNTESTED}",
    "zero_optimization.mics_hierarchical_params_gather": f"MiCS: {_UNTESTED}",
    "zero_optimization.leaf_module": _MOE,
    "zero_optimization.legacy_stage1": _UNTESTED,
    "zero_optimization.memory_efficient_linear": "nt_dist has its own matrix product",
    "zero_optimization.override_module_apply": _UNTESTED,
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is nt_dist's AdamW",
    "zero_optimization.elastic_checkpoint": _CHECKPOINT,
    "zero_optimization.load_from_fp32_weights": _CHECKPOINT,
    "zero_optimization.pipeline_loading_checkpoint": _CHECKPOINT,
    "zero_optimization.stage3_module_granularity_threshold": _UNTESTED,
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": _UNTESTED,
    "data_types.param_dtype": "the TOML has it: train.precision",
    "data_types.buffer_dtype": "buffers (index, rotary tables) keep their own types",
    "data_types.keep_in_fp32_modules": "buffers (index, rotary tables) keep their own types",
}
"""Keys that DeepSpeed knows, or knew, and nt_dist refuses, with the reason."""
