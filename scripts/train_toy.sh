#!/bin/sh
# From nothing to the default checkpoint: VAE, latents, DiT with its text encoders, table.
set -eu
# shellcheck disable=SC1091  # it is read only by `shellcheck -x`
. "$(dirname "$0")/lib/launch.sh"

usage() {
    cat <<'TEXT'
Usage: scripts/train_toy.sh [OUTPUT]

Trains the small default checkpoint on the synthetic data set "moving shapes". It writes the
checkpoint, in the released layout, to OUTPUT/dit/model (default: output/toy). If you start it again
with the same OUTPUT, it continues where it stopped.

It trains the VAE (trainer_misc.train_vae, in three parts), encodes drawn clips
(trainer_misc.toy.latents), writes new weights (trainer_misc.toy.start), trains the transformer and
the text encoders (trainer_misc.train_dit), then measures the checkpoint and writes its model card.
The settings of the trainings are in trainer_misc/toy/*.toml.

Settings, as environment variables:
  PROCESSES  processes of the DiT training (default: the number of GPUs, else of CPU cores)
  STEPS      optimizer steps of the DiT training (default: 4300)
  IMAGES     first frames to encode for it (default: 16000)
  CLIPS      clips of 97 frames to encode for it (default: 1000)
  PRECISION  no, bf16 or fp16: the mixed precision of both trainings (default: no)
  SEED       of weights and data (default: 0)
  PYTHON     the Python to run (default: python)
TEXT
}

explain_if_asked "$@"
[ $# -le 1 ] || refuse "give at most one folder, not $#; settings are environment variables"

output=${1:-output/toy}
PYTHON=${PYTHON:-python}
count='import os, torch; print(torch.cuda.device_count() or os.cpu_count())'
processes=${PROCESSES:-$("$PYTHON" -c "$count")}
check_number PROCESSES "$processes"
root=$(cd "$(dirname "$0")/.." && pwd)
find_packages

case ${PRECISION:-no} in
no) dtype=fp32 ;;
*) dtype=$PRECISION ;;
esac
VAE="$root/pyramid_dit/toy/causal_video_vae" # its sizes alone: the first part has new weights
for part in 1-pictures 2-clips 3-decoder; do
    run="$output/vae/$part"
    if [ ! -d "$run/causal_video_vae" ]; then
        "$PYTHON" -m trainer_misc.train_vae --config "$root/trainer_misc/toy/vae-$part.toml" \
            --model_path "$VAE" --output_dir "$run" --model_dtype "$dtype" --seed "${SEED:-0}"
    fi
    VAE="$run/causal_video_vae"
done
if [ ! -d "$output/latents" ]; then
    "$PYTHON" -m trainer_misc.toy.latents --vae "$VAE" --output "$output/latents" \
        --pictures "${IMAGES:-16000}" --clips "${CLIPS:-1000}"
fi
if [ ! -d "$output/start" ]; then
    "$PYTHON" -m trainer_misc.toy.start --vae "$VAE" --latents "$output/latents" \
        --output "$output/start" --seed "${SEED:-0}"
fi
run_processes "$processes" trainer_misc.train_dit --config "$root/trainer_misc/toy/dit.toml" \
    --model_path "$output/start" --output_dir "$output/dit" --steps "${STEPS:-4300}" \
    --anno_file "$output/latents/clips.jsonl" --image_anno "$output/latents/pictures.jsonl" \
    --sample_prompts "$output/latents/prompts.txt" --model_dtype "$dtype" --seed "${SEED:-0}"
"$PYTHON" -m trainer_misc.evaluation --model "$output/dit/model" --mode all \
    --output "$output/scores.json" --contact-sheet "$output/sheet.png"
"$PYTHON" -m trainer_misc.toy.model_card --checkpoint "$output/dit/model" \
    --scores "$output/scores.json"
