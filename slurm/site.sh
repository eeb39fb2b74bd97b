# Facts of this cluster. Jobs and submit.sh source it; engine settings are in ds_configs/, all else in the recipe.

# Of every job; sbatch reads the SBATCH_* itself, each stands for the option of that name:
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my-project SBATCH_TIMELIMIT=24:00:00

# What each kind of job asks for, as options of sbatch (submit.sh gives them). Where GPUs must be asked for by their type:
# --gres=gpu:h100:8. Where a partition allows less than 40 minutes, --signal=B:USR1@SECONDS need not be changed: see common.sh.
GPU_JOBS=""     # distill, distill_moe, study: all GPUs of their nodes, as "--gpus-per-node=8 --exclusive --mem=0"
ONE_GPU_JOBS="" # evaluate, watch: as "--gpus-per-node=1 --cpus-per-task=8 --mem=64G"
CPU_JOBS=""     # align, report: no GPU, as "--partition=cpu --cpus-per-task=64 --mem=128G"

# Where jobs write their logs: submit.sh makes the folder. A plain sbatch keeps its own log in slurm/ (--output).
export LOG_FOLDER=${LOG_FOLDER:-slurm}

# A container that every python of a job runs in (slurm/tide.def makes one), in place of .venv. One of
# CONTAINER="apptainer exec --nv --bind $PWD --pwd $PWD /images/tide.sif"                                      # a command before python
# CONTAINER="--container-image=/images/tide.sqsh --container-mounts=$PWD --container-workdir=$PWD"             # pyxis: options of srun
CONTAINER=${CONTAINER:-}

# module load cuda/12.8 gcc/13
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0   # ranks on GPUs use both, ranks on CPUs the second
# export TMPDIR=/local/scratch                        # a node's own disk, where compiled code is kept (default: /tmp)

if [ -z "$CONTAINER" ] && [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi
