# Sourced by test_cluster.sh: hosts that are Linux namespaces of this machine, joined by a bridge.
#
# Each has a network, a host name, a process table, /run and /etc/hosts of its own, and is one process with its
# children: killing that process is cutting the power. Nothing of it is seen outside, in the machine's own network above
# all, and nothing stays when it is gone.

SUBNET=10.213.77
declare -A HOLDER HOST # name -> the process that started the host and takes it along, the process that is the host

# start_host NAME [NUMBER]: with a number it gets an address and a cable to the switch.
start_host() {
    local name="$1" number="${2:-}"
    unshare --net --uts --mount --pid --fork --kill-child --mount-proc bash -c '
        hostname "$1"
        mount -t tmpfs tmpfs /run
        mkdir /run/sshd /run/munge
        mount --bind "$2/hosts" /etc/hosts
        ip link set lo up
        touch "$2/up-$1"
        sleep infinity & wait # bash, the first process here, takes up orphans
    ' host "$name" "$work" </dev/null >"$work/host-$name.log" 2>&1 9>&- &
    HOLDER[$name]=$!
    disown # its end is no news
    wait_for 20 "host $name" test -e "$work/up-$name"
    rm "$work/up-$name"
    HOST[$name]="$(tr -d ' ' <"/proc/${HOLDER[$name]}/task/${HOLDER[$name]}/children")"
    if [[ -n "$number" ]]; then
        nsenter --target "${HOST[switch]}" --net ip link add dev "port$number" type veth peer name eth0 netns "${HOST[$name]}"
        on switch ip link set "port$number" master bridge up
        on "$name" ip address add "$SUBNET.$number/24" dev eth0
        on "$name" ip link set eth0 up
    fi
}

# on NAME COMMAND…: run it there, in the folder of the checkout.
on() {
    local name="$1"
    shift
    nsenter --target "${HOST[$name]}" --net --uts --mount --pid -- \
        bash -c 'cd "$1" && shift && exec "$@"' on "$NT_DIST_ROOT" "$@"
}

stop_host() {
    kill -KILL "${HOLDER[$1]}" 2>/dev/null || true
    unset "HOLDER[$1]" "HOST[$1]"
}

stop_all_hosts() {
    local name
    for name in "${!HOLDER[@]}"; do
        stop_host "$name"
    done
}

# start_network NAMES…: the switch and a host for each name.
start_network() {
    local number=0 name
    echo "127.0.0.1 localhost" >"$work/hosts"
    for name in "$@"; do
        echo "$SUBNET.$((++number)) $name" >>"$work/hosts"
    done
    start_host switch
    on switch ip link add dev bridge type bridge
    on switch ip link set bridge up
    number=0
    for name in "$@"; do
        start_host "$name" "$((++number))"
    done
}

# start_ssh NAMES…: an sshd on each, and a command ssh, first in PATH, that knows its way there. Both have keys and
# settings of their own; nobody's ~/.ssh is read.
start_ssh() {
    local name
    mkdir "$work/bin"
    ssh-keygen -q -t ed25519 -N '' -f "$work/key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
    cat >"$work/sshd_config" <<CONFIG
HostKey $work/host_key
AuthorizedKeysFile $work/key.pub
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
CONFIG
    cat >"$work/ssh_config" <<CONFIG
IdentityFile $work/key
IdentitiesOnly yes
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
CONFIG
    printf '#!/bin/sh\nexec "%s" -F "%s" "$@"\n' "$(command -v ssh)" "$work/ssh_config" >"$work/bin/ssh"
    chmod +x "$work/bin/ssh"
    for name in "$@"; do
        on "$name" "$(command -v sshd)" -f "$work/sshd_config" -E "$work/sshd-$name.log"
    done
    PATH="$work/bin:$PATH"
}

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
    local until=$((SECONDS + $1)) what="$2"
    shift 2
    until "$@"; do
        ((SECONDS < until)) || fail "$what did not come in time"
        sleep 0.5
    done
}
