#!/usr/bin/env bash
# Trains under MPI: Open MPI, which the extra [mpi] brings, or MPICH and its relatives.
#
#   bash launch_scripts/mpi.sh [options of mpirun] -- [arguments of train.py]
#   bash launch_scripts/mpi.sh -np 2 -- --config configs/quickstart.toml
#   bash launch_scripts/mpi.sh -np 16 --hostfile hosts -- --config configs/llama_350m.toml
#
# `mpirun -np 2 python train.py …` does the same on one host; this adds what ranks on other hosts need. They find each
# other through mpi4py, or at MASTER_ADDR and MASTER_PORT where both are set.
set -euo pipefail
if (($# == 0)) || [[ "$1" == -h || "$1" == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/environment.sh
options=()
while (($#)) && [[ "$1" != -- ]]; do
    options+=("$1")
    shift
done
[[ "${1:-}" != -- ]] || shift

if mpirun --version 2>/dev/null | grep -qiE 'open ?mpi|open ?rte|prrte'; then
    # MPICH hands the whole environment over, Open MPI what is named. One core a rank, its default, is too few.
    options+=(--bind-to none)
    for name in PATH PYTHONPATH LD_LIBRARY_PATH CUDA_HOME OMP_NUM_THREADS DS_ACCELERATOR GLOO_SOCKET_IFNAME HF_HOME \
        MASTER_ADDR MASTER_PORT ${NT_DIST_EXPORT:-}; do
        [[ -z "${!name:-}" ]] || options+=(-x "$name")
    done
    if ((EUID == 0)); then # containers often have no other user
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
fi
exec mpirun "${options[@]}" python -u train.py "$@"
