#!/bin/sh
# Names in one line what the words of the GPU lack on this machine. usage: check_gpu.sh WORD PYTHON
# Nothing is fetched: the modules are those of this Python.
word=$1
python=$2
missing=
lacks() {
  missing="$missing${missing:+; }$1"
}

if ! command -v nvidia-smi >/dev/null 2>&1; then
  lacks "an NVIDIA GPU with its driver (nvidia-smi is not on PATH)"
elif ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  lacks "an NVIDIA GPU (nvidia-smi -L lists none)"
fi
command -v "${CUDACXX:-nvcc}" >/dev/null 2>&1 || lacks "nvcc (on PATH, or CUDACXX)"
if ! command -v "$python" >/dev/null 2>&1; then
  lacks "Python >= 3.11 ('$python' is not on PATH; make PYTHON=/path/to/python3)"
else
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || lacks "Python >= 3.11 ('$python' is older)"
  for module in numpy pytest pybind11; do
    "$python" -c "import $module" 2>/dev/null || lacks "the Python module $module"
  done
  if [ "$word" = gpu-e2e ]; then
    for module in torch transformers tokenizers safetensors jinja2 huggingface_hub yaml ml_dtypes; do
      "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" ||
        lacks "the Python module $module"
    done
  fi
  command -v cmake >/dev/null 2>&1 || "$python" -c 'import cmake' 2>/dev/null || lacks "cmake >= 3.21"
fi
[ -z "$missing" ] && exit 0
printf 'make %s: missing: %s\n' "$word" "$missing" >&2
exit 2
