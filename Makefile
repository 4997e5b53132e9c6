# The developer's commands. `make` lists them.
#
# ARGS goes to the tool behind a target: make bench ARGS=loopback, make test ARGS='-k roaming', make demo ARGS='--nodes 6'.

PYTHON := .venv/bin/python
PACKAGES := noise tun wgpy controller
SOURCES := $(PACKAGES) benchmarks tests .ci/reference.py
READY := .venv/.ready

# So that tests, demo and benchmarks find this wgpy, and the wireguard-go that setup built.
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.cache/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup web setup-bench setup-kernel-vm setup-kube setup-manifests setup-web setup-image fmt lint quick check test patient-lint pytest promises kube manifests docs cov conformance mutants mistakes demo bench fuzz clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## *(.*)/\1\t\2/' | expand -t 13

setup: $(READY)  ## make .venv and install what is needed (apt when root); quick when nothing has changed

$(READY): setup.cfg pyproject.toml .ci/setup
	bash .ci/setup
	@touch $@

setup-bench: setup  ## what the benchmarks compare wgpy with: gotatun, boringtun, OpenVPN, strongSwan
	bash .ci/setup-bench

setup-kube: setup  ## a real API server for the tests: built with Go, minutes the first time
	@bash .ci/setup-kube || [ -z "$$WGPY_REQUIRE_KUBE" ]

setup-manifests: setup-kube  ## what checks the manifests: Helm and the Prometheus operator's kinds; minutes the first time
	@bash .ci/setup-manifests || [ -z "$$WGPY_REQUIRE_KUBE" ]

setup-web: setup  ## what the tests of the dashboard need: Debian's Chromium, and axe-core from npm
	@bash .ci/setup-web || [ -z "$$WGPY_REQUIRE_WEB" ]

setup-image: setup  ## the container image, from a debootstrap root with buildah (needs root)
	@bash .ci/setup-image

fmt: setup  ## format the code and mend what ruff can mend
	$(PYTHON) -m ruff format $(SOURCES)
	$(PYTHON) -m ruff check --fix $(SOURCES)

lint: setup  ## ruff, mypy, import-linter
	$(PYTHON) -m ruff format --check $(SOURCES)
	$(PYTHON) -m ruff check $(SOURCES)
	$(PYTHON) -m mypy $(SOURCES)
	.venv/bin/lint-imports

quick: setup  ## the tests that need neither root nor time
	$(PYTHON) -m pytest -m 'not e2e and not slow and not kube' $(ARGS)

check: lint quick  ## what to run before a commit

# The first tests are the quick ones, which leave the linters a core, or what they can spare of it.
test: setup-manifests setup-web  ## everything but what takes minutes, with real traffic and a real API server (needs root)
	@$(MAKE) --no-print-directory -j2 patient-lint pytest

patient-lint: setup
	@nice -n 19 $(MAKE) --no-print-directory lint

pytest: setup
	$(PYTHON) -m pytest -m 'not long' $(ARGS)

promises: export WGPY_REQUIRE_TIMES = 1
promises: setup-kube setup-web  ## whether what is promised in seconds is kept, to the letter (needs root and a quiet machine)
	$(PYTHON) -m pytest -m 'promise and not long' $(ARGS)

kube: export WGPY_REQUIRE_KUBE = 1
kube: export WGPY_REQUIRE_TIMES = 1
kube: setup-kube setup-image  ## all tests on a real API server, and their figures (needs root, half an hour)
	$(PYTHON) -m pytest -m kube $(ARGS)

manifests: export WGPY_REQUIRE_KUBE = 1
manifests: setup-manifests  ## render the kustomize base and the Helm chart in all variants, and have a real API server check them
	$(PYTHON) -m pytest tests/deploy tests/kube/test_deploy.py $(ARGS)

# What Material says at each build is about its own future, and no warning of ours.
docs: export NO_MKDOCS_2_WARNING = 1
docs: setup  ## the site of docs/ in build/site, the manual pages in build/man; fails at a warning
	@$(PYTHON) -c 'import argparse_manpage, material' 2>/dev/null || PYTHONWARNINGS=ignore $(PYTHON) -m pip install --quiet --editable '.[docs]'
	$(PYTHON) -m mkdocs build --strict $(ARGS)
	$(PYTHON) .ci/reference.py build/man

web: export WGPY_REQUIRE_WEB = 1
web: export WGPY_REQUIRE_TIMES = 1
web: setup-web  ## the dashboard in a real browser: Debian's Chromium (three minutes)
	$(PYTHON) -m pytest -m web $(ARGS)

cov: setup  ## branch coverage of the quick tests
	$(PYTHON) -m coverage run -m pytest -m 'not e2e and not slow and not kube' $(ARGS)
	$(PYTHON) -m coverage report

conformance: setup  ## behaviours of WireGuard, tried on wgpy and on every other one that is installed (needs root)
	$(PYTHON) -m tests.conformance $(ARGS)

mutants: setup  ## break the code in many small ways and count the tests that notice (hours; ARGS='noise/replay.py --seconds 300')
	@$(PYTHON) -c 'import mutmut' 2>/dev/null || PYTHONWARNINGS=ignore $(PYTHON) -m pip install --quiet --editable '.[mutants]'
	$(PYTHON) -m tests.mutation $(ARGS)

mistakes: setup  ## make the mistakes that WireGuards usually make, one at a time, and see a test fail for each (needs root)
	$(PYTHON) -m tests.mutation.mistakes $(ARGS)

demo: setup  ## a cluster on this machine, in network namespaces (needs root)
	.venv/bin/wgpy demo $(ARGS)

bench: setup  ## the benchmarks
	$(PYTHON) -m benchmarks $(ARGS)

setup-kernel-vm: setup  ## what `make bench ARGS=--kernel-vm` needs: qemu and a Debian kernel
	bash .ci/setup-kernel-vm

fuzz: setup  ## the fuzzers and the model checker for a while: make fuzz ARGS='--seconds 600 [TARGET...]'
	@$(PYTHON) -c 'import atheris' 2>/dev/null || PYTHONWARNINGS=ignore $(PYTHON) -m pip install --quiet --editable '.[fuzz]'
	$(PYTHON) -m tests.fuzz $(ARGS)

clean:  ## remove everything that make made
	rm -rf .venv .cache build dist *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
