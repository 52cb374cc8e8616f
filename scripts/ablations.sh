#!/bin/sh
# ablations.sh DATA WEIGHTS [FOLDER]: one model on the same patient folds with each option changed alone, and the records.
# MODEL, SIZE, EPOCHS and BATCH change the work. OPTIONS="base lesion-target" runs these alone (base always belongs to the
# comparison); start it again to continue, or with other OPTIONS at the same time to divide the work.
set -eu
data=$1
weights=$2
folder=${3:-runs/ablations}
results=bench/results/study/ablations
bin=${HMC_FAST:-.venv/bin/hmc-fast}
size=${SIZE:-64}
epochs=${EPOCHS:-6}
mkdir -p "$results"
for option in ${OPTIONS:-base no-augmentation no-balance breast-facing-left lesion-target lesion-crops flips larger}; do
    case $option in
        base) change= ;;
        no-augmentation) change=--no-augment ;;
        no-balance) change=--no-balance ;;
        breast-facing-left) change="--crop-breast --face-left" ;;
        lesion-target) change="--lesion-weight 0.5" ;;
        lesion-crops) change="--crop-epochs $((epochs / 2))" ;;
        flips) change=--average-flips ;;
        larger) change="--size $((size * 2))" ;;
        *) echo "ablations.sh: no option $option" >&2 && exit 2 ;;
    esac
    # A later --size takes the place of an earlier one. $change is split into words on purpose.
    "$bin" cv --data "$data" --out "$folder/$option" --model "${MODEL:-hmc_net}" --weights "resnet50=$weights" \
        --folds 5 --size "$size" --epochs "$epochs" --batch-size "${BATCH:-8}" $change
    "$bin" study record "$folder/$option" --out "$results/$option.jsonl"
done
"$(dirname "$bin")/python" scripts/readme_study.py README.md
