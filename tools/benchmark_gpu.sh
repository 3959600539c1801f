#!/usr/bin/env bash
# Measures on a GPU what docs/benchmarks.md has of one: tools/benchmark_gpu.sh FOLDER
set -euo pipefail
folder=$1
mkdir -p "$folder"

measure() {
    "${PYTHON:-python}" "$(dirname "$0")/benchmark.py" "${@:2}" --out "$folder/$1.json" | tee "$folder/$1.md"
}

measure resnet50 --model torchvision:resnet50 --delta 1 4 --batch 1 16 128
measure resnet50_amp --model torchvision:resnet50 --delta 1 4 --batch 1 16 128 --amp --channels-last
measure resnet50_convs --model torchvision:resnet50 --convs OREPA OfflineOREPA DBB --batch 16 128
measure resnet50_attention --model torchvision:resnet50 --attention SE ECA CBAM --batch 16 --amp --channels-last
measure resnet101_amp --model torchvision:resnet101 --batch 16 128 --amp --channels-last
measure shufflenet --model torchvision:shufflenet_v2_x1_0 --batch 128
measure resnet164 "$(dirname "$0")/../configs/cifar100/resnet164.py" --part backbone --size 32 --batch 128
measure resnet50_compiled --model torchvision:resnet50 --batch 16 128 --amp --channels-last --compile
