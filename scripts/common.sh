# shellcheck shell=bash
# What the other scripts of this folder share. Sourced, never run.

self=${0##*/}

say() { echo "$self: $*"; }
die() {
    echo "$self: $*" >&2
    exit 1
}

# The comment at the head of the script is its usage text.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
wrong_usage() {
    usage >&2
    exit 64
}

# lock FILE: wait for other runs of this script; the kernel lets go of the lock when the script ends.
lock() {
    exec 9>"$1" || die "can't write $1"
    flock -n 9 && return
    say "waiting for another run to finish ($1)"
    flock 9
}

# quietly LOG COMMAND...: output goes to LOG only; if the command fails, shows the end of it.
quietly() {
    local log=$1 status=0
    shift
    mkdir -p "${log%/*}"
    "$@" >"$log" 2>&1 </dev/null || status=$?
    ((status == 0)) && return
    tail -n 15 "$log" | sed 's/^/    /' >&2
    echo "$self: failed (exit code $status): $*; all of its output: $log" >&2
    return "$status"
}

is_root() { ((EUID == 0)); }
is_debian() { [[ -e /etc/debian_version ]] && command -v apt-get >/dev/null; }

# Needs root. Waits for other users of apt, asks nothing, keeps configuration files. What it starts (a service,
# say) must not keep the lock.
apt_get() {
    DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold "$@" </dev/null 9>&-
}

# The Debian mirror that this machine uses. It may be a snapshot, whose Release files have expired.
mirror() {
    local codename
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016  # apt expands it
    apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Component: main' "Codename: $codename" | sed -n 1p
}

# retry COMMAND...: mirrors fail now and then, and `apt-get update` does not wait for its lock.
retry() {
    local pause
    for pause in 2 5 10 20 30; do
        "$@" && return
        sleep "$pause"
    done
    "$@" || die "gave up on: $*"
}
