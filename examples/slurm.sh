#!/bin/bash
# Trains on several machines with Slurm, from the project's folder, with its environment activated:
#   sbatch examples/slurm.sh yamls/stage2.yaml global_train_batch_size=16384 save_folder=/shared/stage2
# Each machine runs one launcher, which starts a rank per GPU. The save folder has to be on a shared file system.
#SBATCH --job-name=ugt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

export ranks head port
ranks=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # of this job alone, should two of them share a machine
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Where machines have several networks, name the fast one (see `ip addr`):
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# If one machine fails, the ranks of the others end by themselves, with their messages: Slurm need not kill them.
# shellcheck disable=SC2016 # variables of the machine that runs the launcher
srun --kill-on-bad-exit=0 bash -c 'exec composer -n "$SLURM_GPUS_ON_NODE" --world_size "$ranks" \
  --node_rank "$SLURM_NODEID" --master_addr "$head" --master_port "$port" train.py "$@"' train "$@"
status=$?

# 75: preempted, or out of time, with a checkpoint. The same job resumes it.
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
