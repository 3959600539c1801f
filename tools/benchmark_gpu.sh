#!/usr/bin/env bash
# Run everything that needs a GPU: tools/benchmark_gpu.sh FOLDER
#
# It writes benchmarks as tables and JSON to FOLDER. It trains Mask R-CNN on data/shapes, plain, with SE and with ASR(SE), and
# shows AP, and for each of them seconds per step and memory from the last line of the log. It runs the tests in tests/gpu.
# PYTHON=... selects another Python.
set -euo pipefail
folder=$1
root=$(dirname "$0")/..
mkdir -p "$folder"

run() {
    "${PYTHON:-python}" "$@"
}

measure() {
    run "$root/tools/benchmark.py" "${@:2}" --out "$folder/$1.json" | tee "$folder/$1.md"
}

measure resnet50 --model torchvision:resnet50 --delta 1 4 --batch 1 16 128
measure resnet50_amp --model torchvision:resnet50 --delta 1 4 --batch 1 16 128 --amp --channels-last
measure resnet50_attention --model torchvision:resnet50 --attention ECA CBAM --batch 1 16 128
measure resnet50_attention_amp --model torchvision:resnet50 --attention ECA CBAM --batch 1 16 128 --amp --channels-last
measure resnet50_compiled --model torchvision:resnet50 --batch 1 16 128 --amp --channels-last --compile
measure resnet101 --model torchvision:resnet101 --delta 1 4 --batch 1 16 128
measure resnet101_amp --model torchvision:resnet101 --delta 1 4 --batch 1 16 128 --amp --channels-last
measure shufflenet --model torchvision:shufflenet_v2_x1_0 --batch 128
measure resnet164 "$root/configs/cifar100/resnet164.py" --part backbone --size 32 --batch 128
measure resnet50_convs --model torchvision:resnet50 --convs OREPA OfflineOREPA DBB --batch 1 16 128
measure resnet50_xvolution --model torchvision:resnet50 --convs XVolution XVolution,branch={sa,involution} --batch 16 128
measure mask_rcnn "$root/configs/mask_rcnn_r50.py" --batch 2 --size 800 1344

[ -d data/shapes ] || run "$root/tools/shapes.py" data/shapes
run "$root/tools/sweep.py" "$root"/configs/shapes/mask_rcnn_r18{,_se,_asr_se}.py --seeds 3 --out "$folder/shapes"
for log in "$folder"/shapes/*/0/*/*.log; do
    echo "$log"
    grep 'Epoch(train)' "$log" | tail -n 1
done

# The tests are last, so that a failing test does not lose the measurements.
run -m pytest --numprocesses 0 "$root/tests/gpu" | tee "$folder/tests.txt"
