#!/usr/bin/env bash
# Runs the test suite, making .venv first if needed. Arguments go to pytest: bash launch_scripts/test.sh -k storage
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/environment.sh

# The tests run on the CPU everywhere. One thread a rank: ranks that share cores and spin for each other crawl.
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
if (($#)); then
    exec python -m pytest "$@"
fi
python -m pytest -n 2 --dist loadfile tests/unit tests/e2e     # tests of one process and commands, two at a time
exec python -m pytest tests/distributed tests/faults           # these have ranks of their own, which share the cores
