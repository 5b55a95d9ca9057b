# SPDX-License-Identifier: BSD-3-Clause
# Every target sets up what it needs by itself and keeps it: Python's part in .venv, QEMU and the
# test machine under ~/.cache/vfio-user-bridge. On Debian, missing tools are installed with apt-get.

PYTHON ?= python3
CLIENTS ?= 2000
BIN := .venv/bin
# The test machine's console is a terminal, whatever ours is.
COLOUR = $(if $(MAKE_TERMOUT),yes,no)
# Tests in the machine. One that hangs ends there, and the others still run.
INSIDE = python3 -m pytest --timeout 3600 --durations 10 --color=$(COLOUR)

# They take no systemd, but that machine has time for them: so both end at about the same time.
SHIFTED = $(patsubst %,integration/inside/test_%.py,faults doctor recording policy trace outlived_container)

BANDIT = $(BIN)/bandit --quiet --ini setup.cfg
# What requirements/ says, and that alone: building from source would fetch what builds it unpinned.
INSTALL = install --quiet --only-binary :all: --require-hashes --requirement
FUZZED = protocol transport session
SECONDS ?= 60

# $(call tool,COMMAND,PACKAGES): have the command, from Debian's packages if need be
tool = command -v $(1) >/dev/null || \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2); }

# $(call pin,FILE,EXTRAS): lock these extras, with what they take, for every Python that we run on
pin = .venv/audit/bin/uv pip compile --quiet setup.cfg $(patsubst %,--extra %,$(2)) $(UPGRADE) \
	--python $(BIN)/python --no-build-isolation --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --annotation-style line \
	--custom-compile-command 'make pins' --output-file $(1) && \
	sed -i '1i \# SPDX-License-Identifier: BSD-3-Clause' $(1)

# $(call sbom,ENVIRONMENT,FILE): what is installed there; the tool checks it against its schema
sbom = .venv/audit/bin/cyclonedx-py environment --output-reproducible --output-file $(2) $(1)

.DEFAULT_GOAL := help
.PHONY: help venv test lint unit manual host machine system fidelity soak bench fuzz demo shell pins audit wheel \
	sbom clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: .venv/installed ## the command, as .venv/bin/vfio-user-bridge

.venv/installed: setup.cfg pyproject.toml requirements/test.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call tool,no-ensurepip,python3-venv)
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(INSTALL) requirements/test.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Apart, since it brings a pip of its own.
.venv/audit/installed: .venv/installed requirements/audit.txt
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip $(INSTALL) requirements/audit.txt
	touch $@

test: lint unit host ## everything that this project promises, cheapest first
	@echo 'Two test machines now, for 40 minutes on two cores; what each prints comes when it has ended.'
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target machine system

lint: venv ## style, types, what is known to be unsafe
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BANDIT)
	@$(call tool,mandoc,mandoc)
	mandoc -T lint -W warning docs/man/*.1

unit: venv ## what needs nothing but Python, a C compiler and the shells
	@$(call tool,gcc,gcc libc6-dev)
	@$(call tool,zsh,zsh)
	$(BIN)/pytest tests

manual: venv ## pages and completions anew, after a change of what --help says
	$(BIN)/python -m integration.manual

host: venv ## a real QEMU drives our models; their server's system calls fail
	@$(call tool,strace,strace)
	$(BIN)/pytest integration/host

machine: venv ## real kernel VFIO, in the test machine
	$(BIN)/python -m integration.machine --no-remapping -- $(INSIDE) integration/unremapped
	$(BIN)/python -m integration.machine --kernel --timeout 4800 -- $(INSIDE) \
		$(patsubst %,--ignore %,$(SHIFTED)) integration/inside

system: venv ## the bridge as it is installed and run: systemd, libvirt, podman
	$(BIN)/python -m integration.machine --systemd --images --kernel --timeout 4800 -- $(INSIDE) \
		$(patsubst %,integration/system/test_%.py,system install systemd reload fd_store pages libvirt containers) $(SHIFTED)

fidelity: venv ## what the guest can tell: the table, direct against bridged; part of machine
	$(BIN)/python -m integration.machine --kernel --timeout 4800 -- $(INSIDE) -m fidelity integration/inside

soak: venv ## what a server holds before and after CLIENTS (2000) clients, and a tenth on real VFIO
	$(BIN)/python -m integration.soak --clients $(CLIENTS)
	$(BIN)/python -m integration.machine --timeout 3600 -- \
		python3 -m integration.soak --clients $$(($(CLIENTS) / 10)) 0000:00:13.0

bench: venv ## figures against peers; PEER='COMMAND {socket}', PLOT=1 for a picture, ROWS=here without the machine
	@$(call tool,gcc,gcc libc6-dev)
	mkdir -p build
	$(BIN)/python -m integration.bench $(ROWS) --json build/bench.json $(if $(PLOT),--plot build/bench.png) \
		$(if $(PEER),--peer '$(PEER)')

fuzz: venv ## a search for input that breaks it, a minute a target; SECONDS=3600 for long
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip $(INSTALL) requirements/fuzz.txt 2>/dev/null || \
		{ echo 'no atheris for this Python: try make clean, then make fuzz PYTHON=python3.11'; exit 1; }
	for target in $(FUZZED); do $(BIN)/python -m integration.fuzz $$target --seconds $(SECONDS) || exit; done

demo: venv ## a guest drives an NVMe controller through the bridge; DEVICE=0000:xx:yy.z for yours
	@$(BIN)/python -m integration.demo

shell: venv ## a shell in the test machine
	@$(BIN)/python -m integration.machine --shell

pins: .venv/audit/installed ## requirements/ from setup.cfg; UPGRADE=--upgrade also renews what those take
	$(call pin,requirements/test.txt,build test lint plot)
	$(call pin,requirements/audit.txt,audit)
	$(call pin,requirements/fuzz.txt,fuzz)

audit: .venv/audit/installed ## bandit, and advisories on what requirements/ pins; asks PyPI
	$(BANDIT)
	.venv/audit/bin/pip-audit --strict --disable-pip --progress-spinner off \
		$(patsubst %,--requirement requirements/%.txt,test audit fuzz)

wheel: venv ## in dist/, the same bytes from the same commit
	@$(BIN)/python -m integration.wheel dist

sbom: wheel .venv/audit/installed ## in dist/, CycloneDX: what the wheel brings, and what its tests use
	$(PYTHON) -m venv --clear --without-pip .venv/product
	$(BIN)/pip --python .venv/product install --quiet --no-index --no-deps dist/*.whl
	$(call sbom,.venv/product,dist/product.cdx.json)
	$(call sbom,.venv,dist/tests.cdx.json)

clean: ## remove what was made here; the cache stays
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
