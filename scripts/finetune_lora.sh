#!/bin/sh
# A LoRA of a transformer, from a folder of clips with captions.
set -eu
# shellcheck disable=SC1091  # it is read only by `shellcheck -x`
. "$(dirname "$0")/lib/launch.sh"

# Settings, each of which an environment variable of that name replaces. What has no value here
# depends on MODEL_PATH.
GPUS=${GPUS:-1}
MODEL_NAME=${MODEL_NAME:-pyramid_flux}             # or pyramid_mmdit
MODEL_PATH=${MODEL_PATH:-}                         # folder of the checkpoint
OUTPUT_DIR=${OUTPUT_DIR:-output/lora}
RANK=${RANK:-16}
STEPS=${STEPS:-1000}
BATCH_SIZE=${BATCH_SIZE:-4}
PYTHON=${PYTHON:-python}

usage() {
    cat <<'TEXT'
Usage: scripts/finetune_lora.sh FOLDER [OPTION...]

Trains a LoRA of a transformer on the clips in FOLDER: videos with captions in text files of the
same name, a.txt for a.mp4, or listed in metadata.csv or metadata.jsonl. If you start it again with
the same OUTPUT_DIR, it continues where it stopped. The result is
OUTPUT_DIR/pytorch_lora_weights.safetensors, which `pyramid-flow --lora` takes: docs/finetune.md.

Without MODEL_PATH it trains the small checkpoint that comes with the package, in float32. With
MODEL_PATH, the defaults are those for a released model, in bf16 with gradient checkpointing.

Settings, as environment variables:
  GPUS        processes, one per GPU (default: 1)
  MODEL_NAME  pyramid_flux or pyramid_mmdit (default: pyramid_flux)
  MODEL_PATH  folder of the checkpoint (default: the bundled one)
  VARIANT     folder of the transformer in it (default: diffusion_transformer_384p)
  OUTPUT_DIR  folder of the run (default: output/lora)
  RESOLUTION  384p, 768p, or sizes such as 640x384 (default: 384p; bundled: 128x128)
  NUM_FRAMES  latent frames of the longest clip (default: 16, 121 frames; bundled: 3, 17 frames)
  RANK        of the adapters (default: 16)
  LR          peak of the learning rate (default: 1e-4; bundled: 1e-3)
  STEPS       optimizer steps (default: 1000)
  BATCH_SIZE  samples per batch and GPU, a multiple of 4 (default: 4)
  PYTHON      the Python to run (default: python)

Everything else is an option of the trainer, see `python -m trainer_misc.train_dit --help`:
  STEPS=2000 scripts/finetune_lora.sh my-clips --train_text_encoder
TEXT
}

explain_if_asked "$@"
for setting in GPUS RANK STEPS BATCH_SIZE; do
    eval "check_number $setting \"\$$setting\""
done
[ $# -ge 1 ] || refuse "FOLDER is missing: a folder of videos with captions"
folder=$1
shift
[ -d "$folder" ] || refuse "there is no folder $folder"

if [ -n "$MODEL_PATH" ]; then
    VARIANT=${VARIANT:-diffusion_transformer_384p} RESOLUTION=${RESOLUTION:-384p}
    NUM_FRAMES=${NUM_FRAMES:-16} LR=${LR:-1e-4}
    set -- --model_dtype bf16 --gradient_checkpointing "$@"
else
    MODEL_PATH="$(cd -P "$(dirname "$0")/.." && pwd)/pyramid_dit/toy"
    VARIANT=${VARIANT:-diffusion_transformer_128p} RESOLUTION=${RESOLUTION:-128x128}
    NUM_FRAMES=${NUM_FRAMES:-3} LR=${LR:-1e-3}
    set -- --model_dtype fp32 "$@"
fi
RUN='exec' run_processes "$GPUS" trainer_misc.train_dit --lora_rank "$RANK" \
    --use_temporal_pyramid --load_vae --load_text_encoder --model_name "$MODEL_NAME" \
    --model_path "$MODEL_PATH" --model_variant "$VARIANT" --anno_file "$folder" \
    --output_dir "$OUTPUT_DIR" --resolution "$RESOLUTION" --max_frames "$NUM_FRAMES" \
    --batch_size "$BATCH_SIZE" --steps "$STEPS" --lr "$LR" --lr_scheduler cosine \
    --warmup_steps 20 --opt_beta2 0.99 --clip_grad 1.0 --ema_update --ema_decay 0.999 \
    --ema_every 1 --ema_warmup --save_steps 200 "$@"
