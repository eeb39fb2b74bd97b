# Facts of this cluster: the one file to edit. Jobs source it. sbatch reads its SBATCH_* (each stands for the option of that
# name) where it was sourced before:  source slurm/site.sh && sbatch --nodes=2 slurm/distill_moe.sh --recipe my.yaml

# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my-project SBATCH_TIMELIMIT=24:00:00
# export SBATCH_GPUS_PER_NODE=8 SBATCH_EXCLUSIVE=exclusive SBATCH_MEM_PER_NODE=0
# module load cuda/12.8 gcc/13
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0   # ranks on GPUs use both, ranks on CPUs the second
# export TMPDIR=/local/scratch                        # a node's own disk, where compiled code is kept (default: /tmp)

# For pipeline.sh: options of the jobs that need no whole node, as ALIGN_OPTIONS="--partition=cpu --gpus-per-node=0"
ALIGN_OPTIONS=""    # align, report
EVALUATE_OPTIONS="" # evaluate: a shard per GPU, one is enough

if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi
