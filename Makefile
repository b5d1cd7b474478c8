# The words of this project; CI uses the same ones. Each makes .venv and installs what it needs by itself.
#   make run    build, then stream a story from the embedded model
#   make test   every test that needs no torch
#   make lint   formats, types, floors
#   make asan   C++ and kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
#   make grid   attention over every combination of what can be asked for
#   make arm    the core for 64-bit ARM, its C++ tests under qemu
#   make cuda   the GPU extension for every device that it is made for, and the tests of what nvcc made
#   make judge  the live judges: HF transformers on torch, and clients of others in .venv-clients
#   make soak   10,000 mixed requests on each server, and bursts: answers, pages, memory
#   make bench  speed here and its share of the limits, as JSON on standard output
#   make gpu-test   the GPU kernels on this machine's NVIDIA GPU, by tools/gpu.sh: PYTHON as it is, nothing is fetched
#   make gpu-bench  their speed, and that of the methods of docs/attention.md, into benchmarks/results
#   make gpu-e2e    models on it from end to end: judges, soak, sanitizers, speed beside transformers; likewise
#   make wheel  dist/*.whl
# LLM_DECODER_CUDA=on compiles the GPU kernels with the other words too (auto: where nvcc and a GPU are).
PYTHON ?= python3
JOBS ?= $(shell sh tools/count_jobs.sh)
VENV := .venv
CLIENTS := .venv-clients
BIN := $(VENV)/bin
STAMPS := .stamps
SAN_BUILD := build-asan
ARM_BUILD := build-arm
CUDA_BUILD := build-cuda
# Tests run side by side, a worker a core; PYTEST_ARGS="-n 0" runs them in one process, where a debugger can stop.
PYTEST := -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

CPP_SOURCES := $(shell find include kv_cache attention_cpu attention decoder src cmake tests/cpp -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt' -o -name '*.cmake')
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run build test grid soak lint format asan cuda arm judge bench gpu-build gpu-test gpu-bench gpu-e2e wheel clean
.DELETE_ON_ERROR:

run: build
	$(BIN)/llm-decoder stream

build: $(STAMPS)/build

$(STAMPS)/venv:
	@sh tools/check_prerequisites.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/tools: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -m pip install -q "setuptools>=77" "pybind11>=2.13" "cmake>=3.21" wheel
	@touch $@

$(STAMPS)/build: $(STAMPS)/tools CMakeLists.txt setup.py $(CPP_SOURCES)
	LLM_DECODER_BUILD_DIR=build $(BIN)/python -m pip install -q --no-build-isolation -e .
	@touch $@

# The rest of the build is for tests: the C++ ones, and the GPU kernels on the host machine.
$(STAMPS)/dev: $(STAMPS)/build
	$(BIN)/cmake --build build -j $(JOBS)
	LLM_DECODER_BUILD_DIR=build $(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

$(STAMPS)/judge: $(STAMPS)/dev
	$(BIN)/python -m pip install -q "torch==2.13.0" "transformers>=5" "sentence-transformers>=6" "datasets>=3" \
	  "accelerate>=1.1" "scikit-learn>=1.4"
	@touch $@

$(STAMPS)/clients: tests/judge/clients/requirements.txt tests/judge/clients/constraints.txt
	@sh tools/check_prerequisites.sh "$(PYTHON)"
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q -r $< -c $(word 2,$^)
	@mkdir -p $(STAMPS) && touch $@

test: $(STAMPS)/dev
	$(BIN)/ctest --test-dir build --output-on-failure -j $(JOBS)
	$(BIN)/python $(PYTEST) -m "not judge" $(PYTEST_ARGS)

judge: $(STAMPS)/judge $(STAMPS)/clients
	$(BIN)/python $(PYTEST) -m judge $(PYTEST_ARGS)

grid: $(STAMPS)/dev
	LLM_DECODER_GRID=all $(BIN)/python $(PYTEST) -q tests/ops/test_attention_grid.py $(PYTEST_ARGS)

soak: $(STAMPS)/dev
	PYTHONPATH=tests:tests/answers $(BIN)/python tests/soak/soak.py --out benchmarks/results/soak.json $(SOAK_ARGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z '*.h' '*.cpp' | xargs -0 $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy
	PYTHONPATH=build/python $(BIN)/lint-imports

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' | xargs -0 $(BIN)/clang-format -i

asan: $(STAMPS)/dev
	$(BIN)/cmake -S . -B $(SAN_BUILD) -DLLM_DECODER_SANITIZE=address,undefined \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -DNDEBUG" \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build $(SAN_BUILD) -j $(JOBS)
	$(BIN)/ctest --test-dir $(SAN_BUILD) --output-on-failure -j $(JOBS)
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  LLM_DECODER_GRID=few PYTHONPATH=$(SAN_BUILD)/python \
	  $(BIN)/python $(PYTEST) -p no:cacheprovider tests/kernels tests/ops tests/engine/test_kv_cache_properties.py \
	  tests/engine/test_int8_decoder.py tests/encoders/test_encoder_core.py $(PYTEST_ARGS)

arm: $(STAMPS)/tools
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || { \
	  echo "missing: $$tool (Debian, Ubuntu: apt install g++-aarch64-linux-gnu qemu-user)" >&2; exit 1; }; done
	$(BIN)/cmake -S . -B $(ARM_BUILD) --toolchain cmake/aarch64-linux-gnu.cmake -DLLM_DECODER_PYTHON=OFF
	$(BIN)/cmake --build $(ARM_BUILD) -j $(JOBS)
	$(BIN)/ctest --test-dir $(ARM_BUILD) --output-on-failure -j $(JOBS)

cuda: $(STAMPS)/dev
	CUDACXX="$$(sh tools/find_nvcc.sh $(BIN)/python)" $(BIN)/cmake -S . -B $(CUDA_BUILD) -DLLM_DECODER_CUDA=on \
	  -DLLM_DECODER_TESTS=OFF -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build $(CUDA_BUILD) -j $(JOBS) --target python_modules
	LLM_DECODER_CUDA=on LLM_DECODER_BUILD_DIR=$(abspath $(CUDA_BUILD)) PYTHONPATH=$(abspath $(CUDA_BUILD))/python \
	  $(BIN)/python -m pytest tests/cuda $(PYTEST_ARGS)

bench: $(STAMPS)/build
	$(BIN)/llm-decoder bench --json

gpu-build gpu-test gpu-bench gpu-e2e:
	@sh tools/gpu.sh $@

wheel: $(STAMPS)/tools
	$(if $(filter on,$(LLM_DECODER_CUDA)),CUDACXX="$$(sh tools/find_nvcc.sh $(BIN)/python)") $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@ls -l dist/*.whl

clean:
	rm -rf build build-* dist $(STAMPS) $(VENV) $(CLIENTS) python/llm_decoder/_c*.so *.egg-info python/*.egg-info
