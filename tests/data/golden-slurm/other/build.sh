#!/bin/bash
#SBATCH --job-name=hbimage
#SBATCH --partition=cpu
#SBATCH --account=main
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=2048M
#SBATCH --time=0-00:11:00
#SBATCH --no-requeue
#SBATCH --export=ALL
#SBATCH --chdir=/srv/hpcrunner/image_dir/builds/digest
#SBATCH --output=/srv/hpcrunner/image_dir/builds/digest/builder.log
#SBATCH --open-mode=append
#SBATCH --comment="it has blanks"
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
export PATH=/bin:/usr/bin
export A='$x y'
exec /usr/bin/python3 -m 'it'"'"'s' /srv/hpcrunner/image_dir/builds/digest
