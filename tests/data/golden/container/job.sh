#!/bin/bash
# hpcrunner job hr0000000000000: experiment exp_container_1
#
# Files it leaves in the folder `status` of its run directory, each by rename:
#   owner     who runs this: tag, host, boot id, pid, start time of the process
#   started   Unix time
#   program   made by the program's own environment: the container did start
#   exit      code, cause, start, end, host
#   suspended seconds for which it was suspended
umask 077
cd /srv/hpcrunner/runs/exp_container_1-0.1 || exit 73
tag=hr0000000000000
grace=30
now() { date +%s.%N; }
place() { printf '%s\n' "$2" >"status/.$1.$$" && mv -f "status/.$1.$$" "status/$1"; }
# The spool tells hpcrunner which of its many run directories to look at.
tell() { : >/srv/hpcrunner/spool/."$tag" && mv -f /srv/hpcrunner/spool/."$tag" /srv/hpcrunner/spool/"$tag"; }

cause=exit
child=
started=
ended=
finish() {  # finish CODE
    # Timers, and whatever the program left running, end with this session.
    local file stat pid
    for file in /proc/[0-9]*/stat; do
        read -r stat 2>/dev/null <"$file" || continue
        # shellcheck disable=SC2206  # the fields of /proc/PID/stat, from the third on; the fourth of them: session
        stat=(${stat##*) })
        pid=${file//[!0-9]/}
        [[ ${stat[3]-} != "$$" || $pid == "$$" ]] || kill -KILL "$pid" 2>/dev/null
    done
    [[ -e status/exit ]] || record "$1"
    tell
    exit 0
}
record() {  # record CODE: how it ended, also on a disk that is full by now
    local text="$1 $cause ${started:=$(now)} ${ended:=$(now)} $host"
    if [[ -e status/.reserved ]]; then
        printf '%-255s\n' "$text" 1<>status/.reserved && mv -f status/.reserved status/exit
    else
        place exit "$text"
    fi
}
stop() {  # stop CAUSE: SIGTERM to the program and all its children, the grace, SIGKILL
    [[ ! $ended && ($cause == exit || $cause == setup) ]] || return
    cause=$1
    [[ ! $child ]] || end_child
}
end_child() {
    kill -TERM -- "-$child" 2>/dev/null
    # A scheduler's own SIGTERM may reach every process of a job, this one too.
    { trap '' TERM INT HUP; run_for "$grace"; kill -KILL -- "-$child"; } 2>/dev/null &
}
limit_reached() {
    stop "$limit_name"
}

# Waits until this job has run for so many seconds, in steps: while it is suspended it does not run. Of a step that took far
# too long it ran a part only, on the average half. The host's uptime (hundredths of seconds) costs no process and never jumps.
run_for() {
    local left=$((100 * $1)) suspended=0 step took before at
    read -r before _ </proc/uptime
    before=$((10#${before/./}))
    while ((left > 0)); do
        step=$((left < 500 ? left : 500))
        sleep "$((step / 100)).$((step / 10 % 10))$((step % 10))" || return
        read -r at _ </proc/uptime
        at=$((10#${at/./}))
        took=$((at - before)) before=$at
        if ((took > step + 500)); then
            suspended=$((suspended + took - step / 2)) took=$((step / 2))
            place suspended $((suspended / 100))
        fi
        left=$((left - took))
    done
}

# Claim the run directory. A hard link is made or not made, on every file system that has them, and so is a folder.
# Of two jobs that were started for one attempt (an answer of the scheduler was lost) only one runs.
claim() {  # claim FILE: who this is, whole; on a full disk it is empty
    [[ -s $1 ]] || return
    ln "$1" status/owner 2>/dev/null && return
    [[ ! -e status/owner ]] && mkdir status/claim 2>/dev/null && mv -f "$1" status/owner
}
read -r stat </proc/$$/stat
stat=${stat##*) }
# shellcheck disable=SC2086  # the fields of /proc/PID/stat, from the third on
set -- $stat
read -r boot </proc/sys/kernel/random/boot_id
host=$(uname -n)
# A new file: what a crash left there may be a link to the owner's.
rm -f "status/.owner.$$"
printf '%s\n' "$tag $host $boot $$ ${20}" >"status/.owner.$$"
if ! claim "status/.owner.$$"; then
    [[ -e status/owner ]] || exit 73
    mv -f "status/.owner.$$" "status/duplicate.$$"
    exit 0
fi
rm -f "status/.owner.$$"
started=$(now)
printf '%255s\n' '' >status/.reserved
place started "$started"

# What all processes of this job use, in lines as the StudioML client writes them. Of the CPU: percent of all cores that
# the job may use, since the line before; the last line is about the whole run. Of the memory: bytes.
measured_ticks=0
measured_at=$started
cores=$(nproc 2>/dev/null || echo 1)
measure() {
    local at used cards=''
    at=$(now)
    # shellcheck disable=SC2002  # awk would end at the first process that is gone by now
    used=$(cat /proc/[0-9]*/stat 2>/dev/null | awk -v root=$$ -v at="$at" -v since="$measured_at" \
        -v before="$measured_ticks" -v cores="$cores" -v hertz="$(getconf CLK_TCK)" -v page="$(getconf PAGESIZE)" '
        { pid = $1 }
        sub(/.*\) /, "") { parent[pid] = $2; ticks[pid] = $12 + $13 + $14 + $15; pages[pid] = $22 }
        END {
            for (pid in parent) {
                up = pid
                for (steps = 0; up != root && up in parent && steps < 1000; steps++) up = parent[up]
                if (up == root) { all += ticks[pid]; memory += pages[pid] * page }
            }
            share = at > since ? 100 * (all - before) / hertz / (at - since) / cores : 0
            printf "%.0f CPU: %.1f mem: %.0f", all, share < 0 ? 0 : share, memory
        }')
    cards=0
    cards=$(timeout -k 1 10 nvidia-smi ${cards:+-i "$cards"} --query-gpu=index,utilization.gpu,memory.used \
        --format=csv,noheader,nounits 2>/dev/null |
        awk -F', *' 'NF == 3 { printf "%sgpu %d util: %d %%, mem %.0f", gap, $1, $2, $3 * 1048576; gap = " " }')
    # The program may have put a link there, or a pipe, which would be waited for.
    [[ ! -L /srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/_metrics && (! -e /srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/_metrics || -f /srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/_metrics) ]] &&
        printf 'time: %s %s %s \n' "$at" "${used#* }" "$cards" 2>/dev/null >>/srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/_metrics
    measured_ticks=${used%% *} measured_at=$at
}

trap 'stop cancelled' TERM INT HUP
limit=172800
limit_name=walltime
trap limit_reached USR1
rm -f status/suspended
if [[ $(tail -n 1 /srv/hpcrunner/runs/exp_container_1-0.1/env.sh) != 'true  # That is all.' ]]; then
    # This host does not see the file, or not all of it: another one may.
    cause=setup
    finish 73
fi

# Program and timer get process groups of their own, which can be stopped as a whole. Not for longer: under `set -m` bash
# leaves its loops when it is suspended.
set -m
(
    trap - TERM INT HUP USR1 USR2
    exec </dev/null >>/srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/output/output 2>&1
    cd /srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/workspace || exit 73
    umask 022
    # shellcheck source=/dev/null
    . /srv/hpcrunner/runs/exp_container_1-0.1/env.sh || exit 73
    exec /usr/bin/apptainer -q exec --pid --cleanenv --no-eval --home /srv/hpcrunner/runs/exp_container_1-0.1/home --bind /srv/hpcrunner/runs/exp_container_1-0.1:/srv/hpcrunner/runs/exp_container_1-0.1 --pwd /srv/hpcrunner/runs/exp_container_1-0.1/studioml/experiments/exp_container_1/workspace --nv /srv/hpcrunner/runs/exp_container_1-0.1/image /bin/sh -c ': >"$1"; shift
for python in /opt/hpcrunner/python python python3; do
    if command -v "$python" >/dev/null 2>&1; then exec "$python" "$@"; fi
done
echo "hpcrunner: there is no Python in this image" >&2
exit 127' sh /srv/hpcrunner/runs/exp_container_1-0.1/status/program train.py x
) &
child=$!
# Told to stop in the moment before there was a child to stop.
[[ $cause == exit ]] || end_child
# Not if its sleep is killed, as all processes of a job are by a scheduler that ends it.
{ run_for "$limit" && kill -USR1 $$; } &
timer=$!
{ while sleep 60; do measure; done; } &
sampler=$!
set +m

# `wait` returns early when a signal comes in.
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
    sleep 0.2
done
# What comes now, a limit or a signal, is no longer about the program.
ended=$(now)
record "$code"
# Beside this script: whatever it may hang at, a driver or a file system, this job ends.
read -r -t 15 _ < <(measure; echo) || kill -KILL $! 2>/dev/null
finish "$code"
