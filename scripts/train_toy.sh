#!/bin/sh
# From nothing to the default checkpoint: VAE, latents, DiT with its text encoders, table.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/train_toy.sh [OUTPUT]

Trains the small default checkpoint on the synthetic set "moving shapes" and writes it, in the
released layout, to OUTPUT/dit/checkpoint (default: output/toy). Started again with the same
OUTPUT it goes on where it stopped.

Settings, as environment variables:
  PROCESSES  processes of the DiT training (default: the number of GPUs, else of CPU cores)
  STEPS      optimizer steps of the DiT training (default: 4300)
  PYTHON     the Python to run (default: python)
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac

output=${1:-output/toy}
python=${PYTHON:-python}
steps=${STEPS:-4300}
count='import os, torch; print(torch.cuda.device_count() or os.cpu_count())'
processes=${PROCESSES:-$("$python" -c "$count")}

"$python" -m trainer_misc.vae_trainer --output "$output/vae"
vae="$output/vae/causal_video_vae"
if [ ! -f "$output/bank.safetensors" ]; then
    "$python" -m trainer_misc.latent_bank --vae "$vae" --output "$output/bank.safetensors"
fi
"$python" -m torch.distributed.run --standalone --nproc-per-node "$processes" \
    -m trainer_misc.dit_trainer --vae "$vae" --bank "$output/bank.safetensors" \
    --output "$output/dit" --steps "$steps"
"$python" -m trainer_misc.evaluation --model "$output/dit/checkpoint" --mode all \
    --output "$output/scores.json" --contact-sheet "$output/sheet.png"
"$python" -m trainer_misc.model_card --checkpoint "$output/dit/checkpoint" \
    --scores "$output/scores.json"
