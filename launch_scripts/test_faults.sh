#!/usr/bin/env bash
# What happens when things break: kills in mid-save, damaged files, full disks, signals, ranks that die or stand still.
#
#   bash launch_scripts/test_faults.sh [--long] [arguments of pytest]
#
#   --long   many more points and seeds, and a soak of 5,000 steps; prints the table of docs/reliability.md at its end
#
# The short form is a part of launch_scripts/test.sh. Full and read-only disks are small tmpfs, which root may mount;
# where that is not allowed these cases say so and are passed over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
source launch_scripts/environment.sh

export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
if [[ "${1:-}" == --long ]]; then
    shift
    export NT_DIST_LONG_FAULTS=1
fi
NT_DIST_FAULTS_TABLE="$(mktemp)"
export NT_DIST_FAULTS_TABLE
trap 'rm -f "$NT_DIST_FAULTS_TABLE"' EXIT
python -m pytest tests/faults "$@" && code=0 || code=$?
cat "$NT_DIST_FAULTS_TABLE"
exit "$code"
