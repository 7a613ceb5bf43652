#!/bin/bash
# Pretraining on 4 nodes with 8 GPUs each: sbatch examples/cluster/slurm.sh, from the root of the project.
#
# Two minutes before the time limit, Slurm sends SIGUSR1: the run saves, exits with 75, and the job is queued again.
# After a crash or a lost node, Slurm queues it again by itself; each start resumes from the newest checkpoint.
#SBATCH --job-name=mae
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append

export DATA_PATH=/data/imagenet

srun --kill-on-bad-exit=1 python main_multi_gpu_pretrain.py -cfg configs/vit_base_patch16_224_pretrain.yaml \
    -data_path "$DATA_PATH" -output output -resume auto -opts RUN "mae-$SLURM_JOB_ID"
code=$?
if [ "$code" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
