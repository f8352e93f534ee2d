# The project's verbs; `make help` lists them. Each sets up what it needs, and does nothing twice.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
# The versions: today's, or with STACK=composer those within Composer's own bounds, in an environment of their own.
STACK ?= today
ifeq ($(STACK),today)
VENV ?= .venv
LOCK := requirements.txt
else ifeq ($(STACK),composer)
VENV ?= .venv-composer
LOCK := requirements-composer.txt
else
$(error STACK=$(STACK) is not known; give today or composer)
endif
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# A file's tests share fixtures, so they stay together; in the folders' order, for the last ones, tests/unit, are quick.
# Tests of processes wait for half of their time: four at once keep two cores busy. The unit tests wait for nothing.
SPREAD := --dist loadfile --no-loadscope-reorder
FOUR_AT_A_TIME := -n 4 $(SPREAD)
TWO_AT_A_TIME := -n 2 $(SPREAD)
FAST := -m "not slow and not s3 and not exhaustive and not machine" tests/unit
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # without bytecode on disk each process imports torch and Composer for 20 s, not 8

.PHONY: help setup setup-dev demo quick-test test test-exhaustive test-fast coverage test-stack test-cluster test-gpu test-image lint test-examples test-wheels infra-tools infra-lint docs-tools docs sanitize wheel format bench test-data test-corpus train-local lock clean

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 17

setup: $(READY)  ## make the virtual environment (.venv; of STACK=composer: .venv-composer) with what a run needs

setup-dev: $(READY_DEV)  ## the same, with the development tools

# uv installs the pinned set in about 20 s; pip, which is always there, takes minutes. --no-deps: the files hold all that is
# needed, and the packages' own bounds would refuse today's versions.
define install
$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(BIN)/python -r $(1) \
	  || $(BIN)/pip install --quiet --no-deps --require-hashes --disable-pip-version-check -r $(1)
endef

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else f"Python 3.11, 3.12 or 3.13 is needed, {sys.version.split()[0]} found; give another with PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep -o '^uv==[0-9.]*' requirements-dev.txt)

# The native decoder is built where a compiler and libjpeg-turbo's headers are; without it Pillow decodes.
$(READY): $(BIN)/uv $(LOCK) imagestream/decode/build.py $(wildcard imagestream/decode/native/*.[ch])
	$(call install,$(LOCK))
	@$(BIN)/python imagestream/decode/build.py || true
	@touch $@

$(READY_DEV): $(READY) requirements-dev.txt
	$(call install,requirements-dev.txt)
	@touch $@

demo: $(READY)  ## images -> shards -> train, kill -9, resume, compare, evaluate; about 5 minutes on 2 cores
	$(BIN)/python demo/run.py

quick-test: $(READY)  ## the pipeline once, without the kill; a minute or two
	$(BIN)/python demo/run.py --quick

test: $(READY_DEV)  ## the tests, four at a time; without those of examples and wheels: test-examples, test-wheels
	$(BIN)/python -m pytest $(FOUR_AT_A_TIME) --ignore tests/examples --ignore tests/wheels -m "not exhaustive and not machine and not gpu"

test-exhaustive: $(READY_DEV)  ## the same and the whole of each matrix: every fault, algorithm, number of ranks and workers
	$(BIN)/python -m pytest $(FOUR_AT_A_TIME) -m "not machine and not gpu"

test-fast: $(READY_DEV)  ## the quick unit tests, without a server; a minute or two
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) $(FAST)

# Processes that the tests start count too; what only slow tests run, with ranks, kills and servers, does not show here.
coverage: $(READY_DEV)  ## test-fast, and which share of the lines it runs; build/coverage/index.html shows which
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest $(TWO_AT_A_TIME) $(FAST)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report --format=markdown > build/coverage/report.md
	@$(BIN)/python -m coverage report

test-stack: test-fast  ## with STACK=composer: what the other versions have to pass; the above, and a kill and resume
	$(BIN)/python -m pytest -m "not exhaustive and not machine and not gpu" tests/integration/test_resume.py tests/integration/test_step.py tests/unit/test_optimizers.py tests/unit/test_network.py tests/unit/test_step_upstream.py

test-cluster: $(READY_DEV)  ## two Slurm nodes, and two hosts by ssh, on this machine: root, slurmd slurmctld munge openssh-server
	$(BIN)/python -m pytest -m machine tests/infra/test_slurm.py tests/infra/test_slurm_preflight.py tests/infra/test_hosts.py tests/infra/test_slurm_convert.py

test-gpu: $(READY_DEV)  ## what only a GPU can show: copies beside training, exact resumption; on one GPU
	$(BIN)/python -m pytest -m gpu tests/gpu

test-image: $(READY_DEV)  ## the image built and used by buildah: root, buildah debootstrap
	$(BIN)/python -m pytest -s -m machine tests/infra/test_image.py

lint: $(READY_DEV)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Lightning and timm, beside the project's own torch; what they ask for is there but for these packages.
build/examples/.ready: tests/examples/requirements.txt | $(READY_DEV)
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(BIN)/python --target build/examples -r $<
	@touch $@

test-examples: build/examples/.ready  ## the examples, with Lightning and timm, killed and resumed; a few minutes
	$(BIN)/python -m pytest -m "not machine" tests/examples

test-wheels: $(READY_DEV)  ## the wheels of x86_64 and arm64 built and used; gcc-aarch64-linux-gnu, qemu-user, nasm, cmake
	$(BIN)/python -m pytest tests/wheels

# Each tool has an environment of its own: their requirements contradict each other and those of a run.
INFRA_TOOLS := build/infra-tools
INFRA_SCRIPTS := $(wildcard docker/*.sh) .ci/run $(wildcard infra/*/*.sh infra/launch/slurm/*)

$(INFRA_TOOLS)/%/.ready: tests/infra/tools/%.txt | $(READY_DEV)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(INFRA_TOOLS)/$*
	$(BIN)/uv pip install --quiet --python $(INFRA_TOOLS)/$*/bin/python -r $<
	@touch $@

infra-tools: $(foreach tool,lint checkov pcluster sky,$(INFRA_TOOLS)/$(tool)/.ready)  ## install what infra-lint runs

infra-lint: infra-tools  ## the cloud templates and scripts, by cfn-lint, checkov, pcluster, sky, shellcheck, hadolint
	$(INFRA_TOOLS)/lint/bin/shellcheck --external-sources $(INFRA_SCRIPTS)
	$(INFRA_TOOLS)/lint/bin/hadolint Dockerfile
	$(INFRA_TOOLS)/lint/bin/cfn-lint infra/aws/foundation.yaml
	$(INFRA_TOOLS)/checkov/bin/checkov --quiet --compact --skip-download --framework cloudformation -f infra/aws/foundation.yaml
	$(INFRA_TOOLS)/pcluster/bin/python tests/infra/tools/pcluster_check.py
	$(INFRA_TOOLS)/sky/bin/python tests/infra/tools/sky_check.py

DOCS_TOOLS := build/docs-tools

$(DOCS_TOOLS)/.ready: docs/requirements.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(DOCS_TOOLS)
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --python $(DOCS_TOOLS)/bin/python -r $<
	@touch $@

docs-tools: $(DOCS_TOOLS)/.ready  ## install what docs runs

docs: docs-tools  ## the documentation as a site, in build/site; a link that leads nowhere fails it
	NO_MKDOCS_2_WARNING=1 $(DOCS_TOOLS)/bin/mkdocs build --strict --clean

sanitize: $(READY_DEV)  ## the native decoder over 12,000 damaged images, under AddressSanitizer and UBSan
	$(BIN)/python tests/sanitize/run.py

wheel: $(READY_DEV)  ## into dist/, wheels of the library for Linux on x86_64 and arm64, with the native decoder inside
	$(BIN)/python wheels/build.py

format: $(READY_DEV)  ## rewrite the files as lint wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## images/s of the loader on the demo's shards, by number of workers
	$(BIN)/python demo/run.py --only-data
	$(BIN)/python train/check_data.py demo/data/mds

test-data: $(READY)  ## DATA=folder (images or shards): counts, a read of every sample, images/s, workers to use
	@test -n "$(DATA)" || { echo 'give DATA=, a folder of shards or of images (<class>/*, or train/<class>/* and val/<class>/*)' >&2; exit 2; }
	$(BIN)/python train/check_data.py "$(DATA)" $(ARGS)

test-corpus: $(READY_DEV)  ## DIR=folder of odd images: what becomes of each, by converter and decoders, in a process of its own
	@test -n "$(DIR)" || { echo 'give DIR=, a folder of images' >&2; exit 2; }
	$(BIN)/python tests/corpus.py "$(DIR)"

train-local: $(READY)  ## DATA=folder (images or shards): train on it by yamls/local.yaml; ARGS="key=value ..."
	@test -n "$(DATA)" || { echo 'give DATA=, a folder of shards or of images (<class>/*, or train/<class>/* and val/<class>/*)' >&2; exit 2; }
	$(BIN)/python train/check_data.py "$(DATA)" --convert-only
	$(BIN)/python train/main.py yamls/local.yaml \
	  data.local="$$($(BIN)/python train/check_data.py "$(DATA)" --where)" $(ARGS)

# For every platform, with one version of each package for all of them and all Pythons, and a hash of each file.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: $(READY_DEV)  ## pin requirements*.txt and docs/requirements.txt anew
	$(COMPILE) --override requirements-overrides.txt requirements.in -o requirements.txt
	$(COMPILE) requirements-dev.in -o requirements-dev.txt
	$(COMPILE) --constraint requirements-dev.txt requirements.in -o requirements-composer.txt
	$(COMPILE) --no-deps tests/examples/requirements.in -o tests/examples/requirements.txt
	$(COMPILE) docs/requirements.in -o docs/requirements.txt

clean:  ## remove the environments, build/, dist/ and what the demo made; runs/, with its checkpoints and shards, stays
	rm -rf $(VENV) .venv-composer demo/data demo/runs build dist .pytest_cache .mypy_cache .ruff_cache
