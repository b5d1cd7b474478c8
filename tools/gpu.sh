#!/bin/sh
# The words of the Makefile that want an NVIDIA GPU, and their door where there is no make. Nothing is fetched.
# usage: gpu.sh gpu-build | gpu-test | gpu-bench | gpu-e2e
#   PYTHON        with numpy, pytest, pybind11, as it is (python3)
#   JOBS          compilers at once (as many as cores and free memory allow)
#   GPU_BUILD     folder of the build (build-gpu)
#   GPU_RESULTS   folder of the JSON files, each written after every row and gone on with (benchmarks/results)
#   GPU_S         seconds that a word takes at most, its build included (475)
#   GPU_TEST_ARGS, GPU_BENCH_ARGS, GPU_E2E_ARGS    options of tools/gpu_test.py, benchmarks/gpu_kernels.py,
#                                                  tools/gpu_e2e/run.py
begin=$(date +%s)
word=$1
case $word in
gpu-build) others="on_device_tests _study_cuda" ;;
gpu-test) others=on_device_tests ;;
gpu-bench) others=_study_cuda ;;
gpu-e2e) others= ;;
*) echo "usage: gpu.sh gpu-build | gpu-test | gpu-bench | gpu-e2e" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
results=${GPU_RESULTS:-benchmarks/results}
build=${GPU_BUILD:-build-gpu}
# Where installers and containers leave nvcc, compute-sanitizer and nvidia-smi, and no profile has put them on the PATH.
PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer:/usr/local/nvidia/bin
export PATH

sh tools/check_gpu.sh "$word" "$python" || exit 2
jobs=${JOBS:-$(sh tools/count_jobs.sh)}
status=0

run_cmake() {
  if command -v cmake >/dev/null 2>&1; then cmake "$@"; else "$python" -m cmake "$@"; fi
}

# The exit status of the word is that of the last thing in it that went wrong.
run() {
  PYTHONPATH=$build/python${PYTHONPATH:+:$PYTHONPATH} "$python" "$@" || status=$?
}

# Seconds that are left, less $1.
left_s() {
  echo $((begin + ${GPU_S:-475} - $(date +%s) - $1))
}

generator=
go_on=-k
if command -v ninja >/dev/null 2>&1; then
  generator="-G Ninja"
  go_on="-k 0"
fi
echo "compiles with $jobs jobs"
# shellcheck disable=SC2086 # words of their own
run_cmake -S . -B "$build" $generator -DLLM_DECODER_CUDA=auto \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" || exit 1
build=$(cd "$build" && pwd)
run_cmake --build "$build" -j "$jobs" --target python_modules || exit 1
if ! ls "$build"/python/llm_decoder/_cuda.*so >/dev/null 2>&1; then
  echo "make $word: nvcc cannot compile here, $build/CMakeFiles/CMakeConfigureLog.yaml says why" >&2
  exit 1
fi
# What does not compile of the rest fails the word, and the others run.
# shellcheck disable=SC2086
[ -z "$others" ] || run_cmake --build "$build" -j "$jobs" --target $others -- $go_on || status=1
echo "built in $(($(date +%s) - begin)) s"

case $word in
gpu-test)
  run tools/gpu_test.py "$build" --out "$results/gpu_test.json" --limit-s "$(left_s 0)" $GPU_TEST_ARGS
  ;;
gpu-bench)
  run benchmarks/attention_methods.py --build "$build" --out "$results/attention_methods.json"
  run benchmarks/gpu_kernels.py --out "$results/gpu_kernels.json" --limit-s "$(left_s 90)" $GPU_BENCH_ARGS
  ;;
gpu-e2e)  # a row that was begun is given 90 s more
  run tools/gpu_e2e/run.py --out "$results/gpu_e2e.json" --limit-s "$(left_s 90)" $GPU_E2E_ARGS
  ;;
esac
exit $status
