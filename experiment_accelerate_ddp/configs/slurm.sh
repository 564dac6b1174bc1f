#!/usr/bin/env bash
# Two machines with eight GPUs each, under SLURM; each machine has a whole model among its GPUs. Not
# run: there was no such cluster. Change the numbers of nodes and GPUs, and the flags at the end:
# --resume goes on with the latest run.
#   cd experiment_accelerate_ddp && sbatch configs/slurm.sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
set -euo pipefail
export GPUS=8
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER
# SIGTERM two minutes before the time is up saves and stops.
srun bash -c 'accelerate launch --multi_gpu \
  --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER" --main_process_port 29500 \
  train.py --run-name "slurm-$SLURM_JOB_ID" --shard --shard-within "$GPUS"'
