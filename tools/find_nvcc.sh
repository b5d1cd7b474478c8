#!/bin/sh
# Prints where nvcc is: CUDACXX, the one on the PATH, else NVIDIA's wheels, which it installs beside PYTHON.
# usage: find_nvcc.sh PYTHON
set -e
nvcc=${CUDACXX:-$(command -v nvcc || true)}
if [ -z "$nvcc" ]; then
  "$1" -m pip install -q nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 >&2
  toolkit=$("$1" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/nvidia/cu13
  ln -sfn lib "$toolkit/lib64"  # where nvcc looks for the runtime
  nvcc=$toolkit/bin/nvcc
fi
echo "$nvcc"
