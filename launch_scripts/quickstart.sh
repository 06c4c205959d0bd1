#!/usr/bin/env bash
# From a fresh checkout to a trained NeuroTrails LLaMA, or ResNet, and the table of what its ensemble gained.
#
#   bash launch_scripts/quickstart.sh [--images] [--short] [section.key=value …]
#
#   --images             a Wide ResNet on handwritten digits instead of a LLaMA on text: half a minute of training
#   --short              text: one minute of training instead of about five (on two CPU cores)
#   section.key=value    a setting that replaces the one in configs/quickstart.toml or configs/quickstart_images.toml
#
# Makes .venv (see environment.sh), prepares the data and a tokenizer, trains through the deepspeed launcher, which ends with
# the table, and lets the model of texts write some. Run again it reuses all that is there: a run that was interrupted goes
# on. With GPUs it trains on them over NCCL, without on two CPU ranks over gloo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/quickstart.toml
ds_config=configs/ds/zero1.json
settings=()
for argument in "$@"; do
    case "$argument" in
        --images) config=configs/quickstart_images.toml ;;
        --short)
            settings+=(run.dir=runs/quickstart-short data.prepared=runs/quickstart/data)
            settings+=(train.steps=60 train.warmup_steps=6 run.eval_every=30 run.save_every=30)
            ;;
        -h | --help)
            sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        -*)
            echo "error: $argument is no option of quickstart.sh; it takes --images, --short, --help and section.key=value" >&2
            exit 2
            ;;
        *) settings+=("$argument") ;;
    esac
done

source launch_scripts/environment.sh

# Number of ranks, sequences a rank takes at once, and the run's folder; mistakes in the settings end the script here.
plan="$(
    python - "$config" "${settings[@]}" <<'PYTHON'
import sys

import torch

from nt_dist.command_line import run_main
from nt_dist.families import load_config


def main():
    config = load_config(sys.argv[1], sys.argv[2:])
    gpus, batch_size = torch.cuda.device_count(), config.train.batch_size
    ranks = max(ranks for ranks in range(1, (gpus or 2) + 1) if batch_size % ranks == 0)
    micro_batch_size = config.train.micro_batch_size
    if batch_size % (ranks * micro_batch_size):
        micro_batch_size = batch_size // ranks
    print(ranks, "gpu" if gpus else "cpu", micro_batch_size, config.run.dir, sep="\n")


run_main(main)
PYTHON
)"
{ read -r ranks && read -r device && read -r micro_batch_size && read -r run_dir; } <<<"$plan"
settings+=("train.micro_batch_size=$micro_batch_size")

cores="$(getconf _NPROCESSORS_ONLN)"
if [[ "$device" == cpu ]]; then
    export DS_ACCELERATOR=cpu
    export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}" # one machine: the ranks meet on the loopback only
fi

if [[ "$config" == configs/quickstart.toml ]]; then
    echo
    echo "== data and tokenizer =="
    OMP_NUM_THREADS=1 python tools/prepare_data.py --config "$config" "${settings[@]}"
fi

echo
echo "== training on $ranks ranks ($device) =="
port="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
OMP_NUM_THREADS="$((cores / ranks > 0 ? cores / ranks : 1))" \
    deepspeed --num_gpus "$ranks" --log_level error --master_addr 127.0.0.1 --master_port "$port" \
    train.py --config "$config" --ds_config "$ds_config" "${settings[@]}"

more=(--corruptions)
if [[ "$config" == configs/quickstart.toml ]]; then
    echo
    echo "== a sample of what it writes =="
    OMP_NUM_THREADS="$cores" python tools/generate.py --checkpoint "$run_dir" --prompt "import " --max_tokens 80
    more=(--shift corrupt:0.2)
fi

echo
echo "== what next =="
[[ -n "${NT_DIST_VENV:-}" ]] || echo "    source .venv/bin/activate"
echo "    tensorboard --logdir $run_dir/tensorboard"
echo "    python tools/report.py $run_dir"
echo "    python tools/evaluate.py --checkpoint $run_dir --full ${more[*]}"
