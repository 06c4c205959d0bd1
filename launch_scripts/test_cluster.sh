#!/usr/bin/env bash
# A real multi-node test on one machine: every way to launch, a host that dies, a job that is preempted.
#
#   bash launch_scripts/test_cluster.sh [--keep] [hosts] [slurm] [mpi]
#
#   hosts    four hosts with sshd; `deepspeed --hostfile` on all, one of them dies in mid-run, three go on
#   slurm    a SLURM on two of these hosts; slurm.sbatch is signalled before its time limit, queued again, and goes on
#   mpi      `mpirun -np 2`, and a rank of it that dies
#   --keep   leave the folder with all logs there
#
# Without a name all three. Hosts are Linux namespaces (tests/cluster/hosts.sh): nothing is sent into the machine's own
# network, no service of its own is used or touched, and nothing stays. Needs Linux, root (or its capabilities in a
# container: --privileged), and Debian's iproute2 openssh-server pdsh slurm-wlm munge.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/environment.sh
source tests/cluster/hosts.sh
source tests/cluster/slurm.sh

keep=
parts=()
for argument in "$@"; do
    case "$argument" in
        --keep) keep=yes ;;
        hosts | slurm | mpi) parts+=("$argument") ;;
        -h | --help)
            sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) nt_dist_fail "$argument: test_cluster.sh takes --keep, hosts, slurm and mpi" ;;
    esac
done
((${#parts[@]})) || parts=(hosts slurm mpi)
chosen() { [[ " ${parts[*]} " == *" $1 "* ]]; }

PATH="$PATH:/usr/sbin:/sbin"
missing=()
need() { command -v "$1" >/dev/null || missing+=("$1 ($2)"); }
need ip iproute2 && need nsenter util-linux && need unshare util-linux
if chosen hosts; then need sshd openssh-server && need ssh openssh-client && need pdsh pdsh; fi
if chosen slurm; then need slurmctld slurm-wlm && need slurmd slurm-wlm && need sbatch slurm-wlm && need munged munge; fi
if chosen mpi; then need mpirun "the extra [mpi]"; fi
((EUID == 0)) || missing+=("root")
((${#missing[@]} == 0)) || nt_dist_fail "test_cluster.sh cannot run here; missing: $(printf '%s; ' "${missing[@]}")"
unshare --net --uts --mount --pid --fork bash -c 'ip link add dev probe type bridge && mount -t tmpfs none /mnt' 2>/dev/null ||
    nt_dist_fail "test_cluster.sh cannot run here: the kernel or the container allows no namespaces (--privileged does)"

work="$(mktemp -d "${TMPDIR:-/tmp}/nt_dist_cluster.XXXXXX")"
run_dir="$work/run"
common=(--config tests/cluster/tiny.toml "data.prepared=$work/data")
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu NT_DIST_VENV="${NT_DIST_VENV:-$NT_DIST_ROOT/.venv}"
unset GLOO_SOCKET_IFNAME MASTER_ADDR MASTER_PORT # launchers and ranks find these themselves

finish() {
    local code=$?
    stop_all_hosts
    if [[ -n "$keep" || "$code" != 0 ]]; then
        echo "logs: $work"
    else
        rm -rf "$work"
    fi
}
trap finish EXIT
trap 'exit 130' INT TERM

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
say() { printf '\n== %s ==\n' "$*"; }

# logged_step FOLDER: the last step in its metrics, 0 at first.
logged_step() { grep -oP '(?<="step": )\d+' "$1/metrics.jsonl" 2>/dev/null | tail -1 || echo 0; }
reached() { (($(logged_step "$1") >= $2)); }
ended() { ! kill -0 "$1" 2>/dev/null; }
# no_rank_left HOSTS…: no train.py runs on them.
no_rank_left() {
    local name
    for name in "$@"; do
        ! on "$name" pgrep -f 'train\.py' >/dev/null || return 1
    done
}
# same_losses FOLDER FOLDER STEP: both logged the same steps and, up to rounding, the same losses, at least beyond STEP. Two
# candidates of a topology update can be equal up to rounding; where that parts the topologies the comparison ends.
same_losses() {
    python - "$@" <<'PYTHON'
import json
import sys

runs = []
for folder in sys.argv[1:3]:
    records = [json.loads(line) for line in open(f"{folder}/metrics.jsonl")]
    runs.append({record["step"]: record for record in records if "loss" in record})
ours, alone = runs
parted = [step for step in alone if ours[step]["topology_checksum"] != alone[step]["topology_checksum"]]
steps = [step for step in alone if not parted or step < parted[0]]
worst = max(abs(ours[step]["loss"] / alone[step]["loss"] - 1) for step in steps)
print(f"up to step {steps[-1]} of {max(alone)}: the topologies of one rank, and its losses up to {worst:.0e} of their size")
sys.exit(ours.keys() != alone.keys() or worst > 1e-5 or steps[-1] <= int(sys.argv[3]))
PYTHON
}

# Everything that the ranks say of interest; the rest is in the logs.
excerpt() { grep -E "$1" "$2" | sed -E "s#$work/##g; s/^/    /" | cut -c1-180 | head -"${3:-12}" || true; }

say "four hosts on a bridge"
start_network nt1 nt2 nt3 nt4
on nt1 ip -brief -4 address show dev eth0
on nt1 python tools/prepare_data.py "${common[@]}" >"$work/prepare.log" 2>&1 || { cat "$work/prepare.log"; fail "data"; }

if chosen hosts; then
    say "deepspeed --hostfile on four hosts; nt3 dies in mid-run"
    start_ssh nt1 nt2 nt3 nt4
    for number in 1 2 3 4; do echo "$SUBNET.$number slots=1"; done >"$work/four"
    grep -v "$SUBNET.3 " "$work/four" >"$work/three"
    train=(--ds_config configs/ds/zero1.json "run.dir=$run_dir" train.steps=120)
    launch() {
        echo "\$ deepspeed_multinode.sh $(basename "$1") --num_nodes $2 -- ${common[*]} ${train[*]}" | sed "s#$work/##g"
        on nt1 bash launch_scripts/deepspeed_multinode.sh "$1" --num_nodes "$2" --num_gpus 1 --log_level warning -- \
            "${common[@]}" "${train[@]}"
    }
    launch "$work/four" 4 >"$work/four.log" 2>&1 &
    job=$!
    wait_for 300 "step 50 on four hosts" eval "reached '$run_dir' 50 || ended $job"
    stop_host nt3
    began=$SECONDS
    wait_for 60 "the end of the job on all hosts, a minute after nt3 died," ended "$job"
    wait "$job" && fail "the job ended with 0 although a host had died" || code=$?
    excerpt '^\$|4 ranks|Connection|rror' "$work/four.log" 8
    echo "nt3 died at step $(logged_step "$run_dir"); the job ended $((SECONDS - began)) s later with exit code $code"
    reached "$run_dir" 50 || fail "it had not come to step 50 before: $(tail -5 "$work/four.log")"
    wait_for 60 "the end of all ranks" no_rank_left nt1 nt2 nt4
    echo "no rank is left on nt1, nt2, nt4"

    say "the same run on the three that are left"
    launch "$work/three" 3 >"$work/three.log" 2>&1 || { tail -20 "$work/three.log"; fail "three hosts"; }
    excerpt '^\$|continuing|3 ranks|saved|perplexity|ensemble' "$work/three.log" 20
    grep -q "continuing from .*step-" "$work/three.log" || fail "it did not go on from a checkpoint"
    [[ "$(logged_step "$run_dir")" == 120 ]] || fail "it did not come to its last step"
    on nt1 python train.py "${common[@]}" "${train[@]}" "run.dir=$work/alone" >"$work/alone.log" 2>&1 || fail "one rank"
    same_losses "$run_dir" "$work/alone" 60 || fail "the losses differ from those of one rank"
fi

if chosen slurm; then
    say "SLURM on two hosts: a job that is longer than its time limit"
    start_slurm nt1 nt2
    on nt1 sinfo
    run_dir="$work/run-slurm"
    arguments=("${common[@]}" "run.dir=$run_dir" train.steps=100000 run.save_every=0)
    options=(--nodes 2 --ntasks-per-node 1 --time 3 --signal B:USR1@60 --output "$work/slurm-%j.log")
    echo "\$ sbatch ${options[*]} launch_scripts/slurm.sbatch ${arguments[*]}" | sed "s#$work/##g"
    job="$(on nt1 sbatch --parsable "${options[@]}" launch_scripts/slurm.sbatch "${arguments[@]}")"
    log="$work/slurm-$job.log"
    job_is() { [[ "$(job_field nt1 "$job" JobState)" =~ ^($1)$ ]]; }
    # A signal while the ranks are still starting has nothing to save: then it is the next one that counts.
    wait_for 900 "a saved step, on the signal before the time limit," grep -qs "asked to leave: step" "$log"
    saved="$(grep -oP '(?<=asked to leave: step )\d+' "$log" | head -1)"
    wait_for 300 "job $job, queued again and continuing from step $saved," grep -q "continuing from .*$saved" "$log"
    wait_for 120 "steps past $saved" reached "$run_dir" $((saved + 20))
    on nt1 scancel "$job"
    wait_for 90 "the end of the cancelled job" job_is CANCELLED
    wait_for 60 "the end of all ranks" no_rank_left nt1 nt2
    excerpt 'start number|ranks on|asked to leave|queued again|continuing' "$log" 12
    echo "job $job: step $(logged_step "$run_dir"), restarts $(job_field nt1 "$job" Restarts), then cancelled, and it stays so"
    [[ "$(job_field nt1 "$job" Restarts)" == "$(grep -c 'is queued again' "$log")" ]] || fail "scancel queued it again"

    say "srun without a script, and a rank of it that dies"
    srun=(srun --nodes 2 --ntasks-per-node 1 --kill-on-bad-exit=1 python train.py "${common[@]}")
    on nt1 "${srun[@]}" "run.dir=$work/run-srun" train.steps=100000 >"$work/srun.log" 2>&1 &
    job=$!
    wait_for 300 "step 20 under srun" eval "reached '$work/run-srun' 20 || ended $job"
    on nt2 pkill -KILL -f 'train\.py'
    began=$SECONDS
    wait_for 60 "the end of srun, a minute after its rank died," ended "$job"
    wait "$job" && fail "srun ended with 0 although a rank had died" || code=$?
    excerpt '2 ranks|srun: error|Connection' "$work/srun.log" 6
    echo "srun ended $((SECONDS - began)) s after its rank on nt2, with exit code $code"
    wait_for 30 "the end of all ranks" no_rank_left nt1 nt2
fi

if chosen mpi; then
    say "mpirun -np 2"
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    mpirun=(mpirun -np 2 --bind-to none python train.py "${common[@]}")
    echo "\$ ${mpirun[*]} train.steps=60" | sed "s#$work/##g"
    on nt1 "${mpirun[@]}" "run.dir=$work/run-mpi" train.steps=60 >"$work/mpi.log" 2>&1 || { cat "$work/mpi.log"; fail mpi; }
    excerpt '2 ranks|saved|perplexity|ensemble' "$work/mpi.log"

    say "mpi.sh, and a rank of it that dies"
    on nt1 bash launch_scripts/mpi.sh -np 2 -- "${common[@]}" "run.dir=$work/run-mpi2" train.steps=100000 \
        >"$work/mpi2.log" 2>&1 &
    job=$!
    wait_for 300 "step 20 under mpirun" eval "reached '$work/run-mpi2' 20 || ended $job"
    on nt1 pkill -KILL -n -f 'python -u train\.py'
    began=$SECONDS
    wait_for 60 "the end of mpirun, a minute after its rank died," ended "$job"
    wait "$job" && fail "mpirun ended with 0 although a rank had died" || code=$?
    excerpt '2 ranks|Connection|signal 9|exited on' "$work/mpi2.log" 6
    echo "mpirun ended $((SECONDS - began)) s after its rank, with exit code $code"
    wait_for 30 "the end of all ranks" no_rank_left nt1
fi

say "all of it works: ${parts[*]}, in $((SECONDS / 60)) min $((SECONDS % 60)) s"
