#!/bin/bash
#SBATCH --job-name=hr0000000000000
#SBATCH --partition=cpu
#SBATCH --account=main
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1024M
#SBATCH --time=0-00:22:00
#SBATCH --signal=B:USR2@60
#SBATCH --no-requeue
#SBATCH --export=ALL
#SBATCH --chdir=/srv/hpcrunner/runs/exp_rmq_1-0.1
#SBATCH --output=/srv/hpcrunner/runs/exp_rmq_1-0.1/job.log
#SBATCH --open-mode=append
#SBATCH --comment="it has blanks"
# hpcrunner job hr0000000000000: experiment exp_rmq_1
#
# Files it leaves in the folder `status` of its run directory, each by rename:
#   owner     who runs this: tag, node, Slurm's job id, job name
#   crashes   a dot for each time that its node was lost without a word
#   started   Unix time
#   program   made by the program's own environment: the container did start
#   exit      code, cause, start, end, host
#   suspended seconds for which it was suspended
umask 077
cd /srv/hpcrunner/runs/exp_rmq_1-0.1 || exit 73
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
    [[ ! ${timer-} ]] || kill -KILL -- "-$timer" 2>/dev/null
    [[ ! ${sampler-} ]] || kill -KILL -- "-$sampler" 2>/dev/null
    [[ ! $child ]] || kill -KILL -- "-$child" 2>/dev/null
    [[ -e status/exit ]] || record "$1"
    tell
    exit "$1"
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
    # If Slurm starts this job again it shall know that its node was not lost.
    [[ $1 != cancelled && $1 != preempted ]] || place interrupted "$(now)"
    # The program may use all the time that it is warned ahead; Slurm ends it when that is over.
    [[ $1 != preempted ]] || grace=60
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
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
host=${SLURMD_NODENAME:-$(uname -n)}
note() { printf '[hpcrunner] %s\n' "$*" >>/srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/output/output; }
# A new file: what a crash left there may be a link to the owner's.
rm -f "status/.owner.$job"
printf '%s\n' "$tag $host $job $SLURM_JOB_NAME" >"status/.owner.$job"
if ! claim "status/.owner.$job"; then
    owner=
    [[ ! -e status/owner ]] || read -r _ _ owner _ <status/owner
    if [[ ! $owner ]]; then
        echo "[hpcrunner] $PWD/status/owner could not be written" >&2
        exit 73
    elif [[ $owner != "$job" ]]; then
        mv -f "status/.owner.$job" "status/duplicate.$job"
        exit 0
    fi
    # The same job again: Slurm requeued it. It goes on with the files that are there.
    [[ ! -s status/.owner.$job ]] || mv -f "status/.owner.$job" status/owner
    code='' cause=''
    [[ ! -e status/exit ]] || read -r code cause _ <status/exit
    case $cause in
    '' | cancelled | preempted) ;;
    *) # It had ended by itself when its node was taken.
        tell
        exit "$code"
        ;;
    esac
    if [[ ! $cause && ! -e status/interrupted ]]; then
        printf . >>status/crashes
        if (($(stat -c %s status/crashes) > 2)); then
            cause=crashed
            finish 73
        fi
    fi
    cause=exit
    ended=
    rm -f status/exit status/interrupted
    note "continues on $host: Slurm had taken its node (start $((${SLURM_RESTART_COUNT:-0} + 1)))"
elif compgen -G 'status/owner.*' >/dev/null; then
    note "continues on $host: the job before this one had to leave its node"
fi
rm -f "status/.owner.$job"
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
    # The program may have put a link there, or a pipe, which would be waited for.
    [[ ! -L /srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/_metrics && (! -e /srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/_metrics || -f /srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/_metrics) ]] &&
        printf 'time: %s %s %s \n' "$at" "${used#* }" "$cards" 2>/dev/null >>/srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/_metrics
    measured_ticks=${used%% *} measured_at=$at
}

trap 'stop cancelled' TERM INT HUP
limit=1200
limit_name=max_duration
trap limit_reached USR1
rm -f status/suspended
if [[ $(tail -n 1 /srv/hpcrunner/runs/exp_rmq_1-0.1/env.sh) != 'true  # That is all.' ]]; then
    # This host does not see the file, or not all of it: another one may.
    cause=setup
    finish 73
fi
# Slurm takes the node soon: it preempts, or its own time limit is near; ours comes before that.
begun=$SECONDS
warned() {
    local suspended=0
    [[ ! -e status/suspended ]] || read -r suspended <status/suspended
    ((SECONDS - begun - suspended > 1320 - 60 - 120)) || stop preempted
}
trap warned USR2
# A batch script is no login shell, in which many sites define `module`.
for file in /etc/profile.d/{lmod,z00_lmod,modules}.sh /usr/share/{lmod/lmod,modules}/init/bash; do
    ! type module >/dev/null 2>&1 || break
    # shellcheck source=/dev/null
    [[ ! -r $file ]] || . "$file"
done
if ! module load apptainer/1.4; then
    echo "[hpcrunner] module load apptainer/1.4 failed on $(uname -n)" >&2
    cause=setup
    ! declare -F finish >/dev/null || finish 73
    exit 73
fi

# Program and timer get process groups of their own, which can be stopped as a whole. Not for longer: under `set -m` bash
# leaves its loops when it is suspended.
set -m
(
    trap - TERM INT HUP USR1 USR2
    exec </dev/null >>/srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/output/output 2>&1
    cd /srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/workspace || exit 73
    umask 022
    # shellcheck source=/dev/null
    . /srv/hpcrunner/runs/exp_rmq_1-0.1/env.sh || exit 73
    exec /usr/bin/apptainer -q exec --pid --cleanenv --no-eval --home /srv/hpcrunner/runs/exp_rmq_1-0.1/home --bind /srv/hpcrunner/runs/exp_rmq_1-0.1:/srv/hpcrunner/runs/exp_rmq_1-0.1 --pwd /srv/hpcrunner/runs/exp_rmq_1-0.1/studioml/experiments/exp_rmq_1/workspace /srv/hpcrunner/images/DIGEST.sif /bin/sh -c ': >"$1"; shift
for python in /opt/hpcrunner/python python python3; do
    if command -v "$python" >/dev/null 2>&1; then exec "$python" "$@"; fi
done
echo "hpcrunner: there is no Python in this image" >&2
exit 127' sh /srv/hpcrunner/runs/exp_rmq_1-0.1/status/program train.py x 'y z'
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
# The SIGTERM that ended the program may be on its way here: Slurm sends it to one process after the other.
[[ $code == 0 || $cause != exit ]] || sleep 0.2
if [[ $cause == preempted ]]; then
    # A job that ends now would not be requeued: it waits for Slurm to take its node.
    record "$code"
    tell
    trap 'exit "$code"' TERM
    for ((left = 60 + 120; left > 0; left--)); do sleep 1; done
fi
# What comes now, a limit or a signal, is no longer about the program.
ended=$(now)
record "$code"
# Beside this script: whatever it may hang at, a driver or a file system, this job ends.
read -r -t 15 _ < <(measure; echo) || kill -KILL $! 2>/dev/null
finish "$code"
