#!/usr/bin/env bash
# Trains on several hosts through DeepSpeed's own launcher, over pdsh and ssh.
#
#   bash launch_scripts/deepspeed_multinode.sh HOSTFILE [options of deepspeed] -- [arguments of train.py]
#   bash launch_scripts/deepspeed_multinode.sh hosts --num_nodes 4 -- --config configs/llama_350m.toml
#
# HOSTFILE has a line "name slots=8" for each host. The checkout, the environment and the run's folder must be on a disk
# that all hosts see, at the same path; ssh must reach every host without a password.
#
# DeepSpeed hands only a few variables to other hosts. This script hands over what ranks need besides: those in NAMES
# below, those that NT_DIST_EXPORT names (NT_DIST_EXPORT="A B"), and what is in a .deepspeed_env of your own. They are
# seen in the list of processes there, so no secret may be among them.
set -euo pipefail
if (($# == 0)) || [[ "$1" == -h || "$1" == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
fi
hostfile="$(realpath "$1")"
shift
launcher=()
while (($#)) && [[ "$1" != -- ]]; do
    launcher+=("$1")
    shift
done
[[ "${1:-}" != -- ]] || shift
for argument in "$@"; do
    # DeepSpeed puts them into a command line that a shell on each host reads.
    [[ "$argument" != *[\"\'\`\\\$\;\&\|\<\>\(\)\*\?\!\#\{\}$'\n']* ]] || {
        echo "error: $argument cannot be handed to the shells of other hosts; put it into the config file" >&2
        exit 2
    }
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/environment.sh
[[ -f "$hostfile" ]] || nt_dist_fail "$hostfile is no file; it lists the hosts, a line \"name slots=8\" each"
command -v pdsh >/dev/null || nt_dist_fail "pdsh is needed (Debian, Ubuntu: apt-get install pdsh)"

NAMES="PATH LD_LIBRARY_PATH CUDA_HOME OMP_NUM_THREADS DS_ACCELERATOR GLOO_SOCKET_IFNAME
    HF_HOME HF_DATASETS_CACHE HF_HUB_OFFLINE TMPDIR"
handed="$(mktemp)"
trap 'rm -f "$handed"' EXIT
for file in ~/.deepspeed_env .deepspeed_env; do
    [[ -f "$file" ]] && cat "$file" >>"$handed"
done
for name in $NAMES ${NT_DIST_EXPORT:-}; do
    if [[ -n "${!name:-}" ]]; then
        # The remote shell reads it between double quotes.
        [[ "${!name}" != *[\"\$\`\\$'\n']* ]] || nt_dist_fail "$name = ${!name} cannot be handed to other hosts"
        echo "$name=${!name}" >>"$handed"
    fi
done
export DS_ENV_FILE="$handed"
# A host that is gone without a word is noticed within half a minute.
export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=10 -o ServerAliveCountMax=3 ${PDSH_SSH_ARGS_APPEND:-}"

deepspeed --hostfile "$hostfile" "${launcher[@]}" train.py "$@" &
job=$!
trap 'kill -TERM "$job" 2>/dev/null' INT TERM # deepspeed then ends the ranks of all hosts
wait "$job" && code=0 || code=$?
while kill -0 "$job" 2>/dev/null; do # a signal ended wait
    wait "$job" && code=0 || code=$?
done
exit "$code"
