# Sourced by the other scripts: makes .venv with the pinned packages, or reuses it, and activates it.
#
#   NT_DIST_PYTHON=python3.12    the interpreter to make .venv with (default: the first of 3.11 and 3.12 that runs)
#   NT_DIST_VENV=folder          an environment of your own, used as it is: nothing is installed or checked
#
# .venv carries a stamp, written last, of what it was made from. Without it, or with another one, .venv is made anew: a
# run that was interrupted, or a changed pin, never leaves a half-right environment behind.

NT_DIST_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

nt_dist_fail() {
    echo "error: $*" >&2
    exit 1
}

nt_dist_stamp() {
    cat "$NT_DIST_ROOT/setup.py" "$NT_DIST_ROOT/constraints.txt" | cksum
    echo "$NT_DIST_ROOT" # an environment cannot be moved
}

# Running it is the only sure test: a version manager's shim is there for versions that are not installed, too.
nt_dist_is_usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' >/dev/null 2>&1
}

nt_dist_find_python() {
    local candidate
    for candidate in ${NT_DIST_PYTHON:-python3.11 python3.12 python3}; do
        if nt_dist_is_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    nt_dist_fail "${NT_DIST_PYTHON:-no python3.11 or python3.12} can be used: Python 3.11 or 3.12 with its venv" \
        "module is needed (Debian, Ubuntu: apt-get install python3.11-venv); NT_DIST_PYTHON names another one"
}

nt_dist_install() {
    local python="$1" venv="$NT_DIST_ROOT/.venv" pip
    echo "making .venv with $("$python" --version) (a few minutes, once)"
    pip=("$venv/bin/python" -m pip --disable-pip-version-check install --constraint "$NT_DIST_ROOT/constraints.txt")
    # torch first: DeepSpeed's build looks at the torch that is there, which build isolation would hide from it.
    rm -rf "$venv" &&
        "$python" -m venv "$venv" &&
        "${pip[@]}" --quiet setuptools &&
        echo "  torch (a CUDA build is some gigabytes large)" &&
        "${pip[@]}" torch && # not quietly: pip shows what it downloads, and on a terminal how far it is
        echo "  everything else" &&
        "${pip[@]}" --quiet --no-build-isolation --editable "$NT_DIST_ROOT[dev]" &&
        nt_dist_stamp >"$venv/stamp.new" &&
        mv "$venv/stamp.new" "$venv/nt_dist.stamp"
}

nt_dist_activate() {
    local venv="${NT_DIST_VENV:-$NT_DIST_ROOT/.venv}" python
    if [[ -z "${NT_DIST_VENV:-}" ]]; then
        # One installation at a time; a lock ends with the process that holds it.
        if command -v flock >/dev/null; then
            exec 9>"$NT_DIST_ROOT/.venv.lock"
            flock 9
        fi
        if [[ "$(cat "$venv/nt_dist.stamp" 2>/dev/null)" != "$(nt_dist_stamp)" ]]; then
            python="$(nt_dist_find_python)" || exit 1
            nt_dist_install "$python" || nt_dist_fail "the installation failed; the next run starts it anew"
        fi
        exec 9>&-
    fi
    [[ -x "$venv/bin/python" ]] || nt_dist_fail "NT_DIST_VENV = $venv holds no bin/python"
    export PATH="$venv/bin:$PATH"
    export PYTHONPATH="$NT_DIST_ROOT${PYTHONPATH:+:$PYTHONPATH}" # an environment of one's own may lack this package
    unset PYTHONHOME
}

nt_dist_activate
