#!/bin/sh
# The transformer of the default checkpoint, autoregressive with the temporal pyramid.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/train_pyramid_flow.sh [OPTION...]

Trains the transformer of the default checkpoint with its text encoders, autoregressive with the
temporal pyramid, on the latents that extract_vae_latent.sh wrote, and writes the checkpoint in the
released layout to OUTPUT/checkpoint. It knows one data set, the synthetic "moving shapes". Started
again with the same OUTPUT it goes on where it stopped.

Settings, as environment variables:
  OUTPUT     folder of the run (default: output/toy/dit)
  VAE        folder of the VAE (default: output/toy/vae/causal_video_vae)
  BANK       file of latents (default: output/toy/bank.safetensors)
  PROCESSES  processes (default: the number of GPUs, else of CPU cores)
  STEPS      optimizer steps of the whole run (default: 4300)
  PRECISION  no, bf16 or fp16: the mixed precision (default: no)
  SEED       of weights and draws (default: 0)
  PYTHON     the Python to run (default: python)

Everything else is an option of the trainer, see `python -m trainer_misc.dit_trainer --help`:
  STEPS=2000 scripts/train_pyramid_flow.sh --cooldown 1000 --max-minutes 60
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac

python=${PYTHON:-python}
count='import os, torch; print(torch.cuda.device_count() or os.cpu_count())'
processes=${PROCESSES:-$("$python" -c "$count")}
case $processes in
'' | *[!0-9]* | 0)
    echo "train_pyramid_flow.sh: PROCESSES must be a number above 0, not '$processes'" >&2
    exit 2
    ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
set -- trainer_misc.dit_trainer --output "${OUTPUT:-output/toy/dit}" \
    --vae "${VAE:-output/toy/vae/causal_video_vae}" \
    --bank "${BANK:-output/toy/bank.safetensors}" --steps "${STEPS:-4300}" \
    --mixed-precision "${PRECISION:-no}" --seed "${SEED:-0}" "$@"
if [ "$processes" -gt 1 ]; then
    set -- torch.distributed.run --standalone --nproc-per-node "$processes" -m "$@"
fi
exec "$python" -m "$@"
