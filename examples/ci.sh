#!/bin/sh
# Export, re-export and judge a model on any Linux machine. Stops with the first command that says no.
#
#   sh examples/ci.sh MODEL CHECKPOINT [BUILD]
#
# MODEL: a shipped model's name or a recipe folder. CHECKPOINT: its folder or file. EXPECT in the
# environment: the sha256 that coreproof.json must have, so that a byte that changes is a failing build.
set -eu

model=$1
checkpoint=$2
build=${3:-build/ci}

coreproof export "$model" --checkpoint "$checkpoint" --output "$build"
if [ -n "${EXPECT:-}" ]; then
    coreproof verify "$build" --model "$model" --expect "$EXPECT"
fi
coreproof verify "$build" --checkpoint "$checkpoint" --model "$model"
coreproof verify "$build" --checkpoint "$checkpoint" --model "$model" --weights-only
coreproof validate "$build" --checkpoint "$checkpoint" --model "$model" --backend mil
coreproof validate "$build" --checkpoint "$checkpoint" --model "$model" --controls
coreproof verify "$build" --checkpoint "$checkpoint" --model "$model" --receipt "$build/receipt-mil.json"
