#!/bin/sh
# study.sh DATA WEIGHTS [FOLDER]: the seven models on patient folds, the leak beside them, and their records.
# EPOCHS, SIZE, BATCH, LEAK_MODEL, LEAK_SIZE and LEAK_EPOCHS change the work. Start it again, or several times at once, to
# continue: finished folds are kept, and processes share the rest.
set -eu
data=$1
weights=$2
folder=${3:-runs/study}
results=bench/results/study
bin=${HMC_FAST:-.venv/bin/hmc-fast}
mkdir -p "$results"
"$bin" cv --data "$data" --out "$folder/patient" \
    --models hmc_net,resnet50_hsa,resnet50_msca,resnet50,vgg16,vgg19,vit_b_16 \
    --weights "resnet50=$weights" --folds 5 \
    --size "${SIZE:-224}" --epochs "${EPOCHS:-2}" --batch-size "${BATCH:-8}"
"$bin" study record "$folder/patient" --out "$results/mias-seven-models.jsonl"
"$bin" study report "$results/mias-seven-models.jsonl" --out "$folder/report"
"$bin" leakage-probe --data "$data" --out "$folder/leakage" --model "${LEAK_MODEL:-hmc_net}" \
    --weights "resnet50=$weights" --copies 90 --folds 2 --size "${LEAK_SIZE:-64}" --epochs "${LEAK_EPOCHS:-4}" \
    --batch-size 64 --learning-rate 3e-4 --json >"$folder/leakage.json"
mv "$folder/leakage.json" "$results/mias-leakage.json"
"$(dirname "$bin")/python" scripts/readme_study.py README.md
