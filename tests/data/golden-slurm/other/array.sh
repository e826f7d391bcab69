#!/bin/bash
#SBATCH --job-name=hrarray
#SBATCH --partition=gpu
#SBATCH --account=main
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=3072M
#SBATCH --gres=gpu:1
#SBATCH --time=0-01:02:00
#SBATCH --signal=B:USR2@60
#SBATCH --requeue
#SBATCH --export=ALL
#SBATCH --array=0-2%9
#SBATCH --chdir=/srv/hpcrunner/arrays
#SBATCH --output=/srv/hpcrunner/arrays/hrarray.log
#SBATCH --open-mode=append
#SBATCH --comment="it has blanks"
#SBATCH --mail-type=NONE
mapfile -t run_dirs </srv/hpcrunner/arrays/hrarray.list || exit 73
run_dir=${run_dirs[SLURM_ARRAY_TASK_ID]}
exec /bin/bash "$run_dir/job.sh" >>"$run_dir/job.log" 2>&1
