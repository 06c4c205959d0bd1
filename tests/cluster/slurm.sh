# Sourced by test_cluster.sh: a SLURM of its own on hosts of hosts.sh, the first of them its head.

start_slurm() {
    local name head="$1" number=0
    head -c 1024 /dev/urandom >"$work/munge.key"
    chmod 400 "$work/munge.key"
    mkdir "$work/slurm-state"
    {
        cat <<CONFIG
ClusterName=nt_dist_test
SlurmctldHost=$head($SUBNET.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# How long a requeued job has to wait.
AuthInfo=cred_expire=10
CryptoType=crypto/munge
StateSaveLocation=$work/slurm-state
SlurmdSpoolDir=$work/slurm-spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
JobRequeue=1
ReturnToService=2
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
CONFIG
        for name in "$@"; do
            echo "NodeName=$name NodeAddr=$SUBNET.$((++number)) CPUs=2 State=UNKNOWN"
        done
        echo "PartitionName=all Nodes=ALL Default=YES State=UP"
    } >"$work/slurm.conf"
    export SLURM_CONF="$work/slurm.conf"
    for name in "$@"; do
        # Under a folder that others may write to, which munged refuses without --force.
        on "$name" munged --force --key-file="$work/munge.key" --log-file="$work/munged-$name.log" \
            --pid-file=/run/munge/munged.pid --seed-file="/run/munge/seed" --socket=/run/munge/munge.socket.2 \
            >>"$work/munged-$name.out" 2>&1
    done
    on "$head" slurmctld >>"$work/slurmctld.out" 2>&1
    for name in "$@"; do
        on "$name" slurmd -N "$name" >>"$work/slurmd.out" 2>&1
    done
    wait_for 60 "a SLURM with $# idle nodes" slurm_is_idle "$head" "$#"
}

slurm_is_idle() {
    [[ "$(on "$1" sinfo --noheader --states=idle --format=%D 2>/dev/null)" == "$2" ]]
}

# job_field HEAD JOB FIELD: as "scontrol show job" has it.
job_field() {
    on "$1" scontrol show job "$2" 2>/dev/null | grep -oP "(?<=\b$3=)\S+" | head -1
}
