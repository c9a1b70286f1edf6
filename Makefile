# `make run` and `make test` need nothing but Python; each target makes the environment it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS := build
INCUMBENT :=
INCUMBENT_MODELS :=
INCUMBENT_DEMO :=
OPTIMUM :=
# Where Model Optimizer lives, beside .venv and never in it; the tests look there, too.
OMZ_MO_ENV ?= .venv-mo
PROMPT := If the class defines a

export PIP_CONSTRAINT := $(abspath constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test test-faults lint bench mo-env clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	$(BIN)/omz_downloader --name gpt-2-mini -o $(MODELS)
	$(BIN)/omz_converter --name gpt-2-mini -d $(MODELS) --variant stateful
	@echo
	$(BIN)/omz_text_prediction --name gpt-2-mini -d $(MODELS) -i "$(PROMPT)" --temperature 0
	@echo
	@echo "A page to try it with:"
	@echo "  $(BIN)/omz_text_prediction --name gpt-2-mini -d $(MODELS) -i \"$(PROMPT)\" --serve"
	@echo
	@echo "The same for gpt-2 (0.55 GB from the Hugging Face Hub):"
	@echo "  $(BIN)/omz_downloader --name gpt-2 -o $(MODELS)"
	@echo "  $(BIN)/omz_converter --name gpt-2 -d $(MODELS) --variant stateful"
	@echo "  $(BIN)/omz_text_prediction --name gpt-2 -d $(MODELS) -i \"$(PROMPT)\""

# A file's tests stay together: some share a model that takes a while to convert. The order is that of tests/conftest.py.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 15

# Kills, failing system calls, cuts, flipped bits and operator sets in their full number; about an hour.
test-faults: $(VENV)/dev.stamp
	OMZ_FAULTS=full $(BIN)/python -m pytest --numprocesses auto --dist worksteal \
	    tests/test_faults_*.py tests/test_store_crashes.py tests/test_fuzz.py tests/test_onnx_export.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

# INCUMBENT: the folder of Open Model Zoo's own commands; INCUMBENT_MODELS: where its omz_downloader put gpt-2;
# INCUMBENT_DEMO: its gpt2_text_prediction_demo.py. OPTIMUM: what optimum-intel made of gpt-2, see generation.py, which runs
# where gpt-2 was downloaded to $(MODELS) and converted, as it is and with --variant stateful.
bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/commands.py --json docs/figures/commands.json
	$(BIN)/python benchmarks/download.py --json docs/figures/download.json \
	    $(if $(INCUMBENT),--incumbent $(INCUMBENT)/omz_downloader)
	rm -rf build/bench
	$(BIN)/python benchmarks/convert.py --keep build/bench --json docs/figures/convert.json \
	    $(if $(INCUMBENT),--incumbent $(INCUMBENT)/omz_converter --incumbent_download_dir $(INCUMBENT_MODELS))
	$(BIN)/python benchmarks/latency.py build/bench/ours --json docs/figures/latency.json \
	    $(if $(INCUMBENT),--incumbent build/bench/incumbent)
	if [ -d $(MODELS)/public/gpt-2/stateful ]; then \
	    $(BIN)/python benchmarks/generation.py $(MODELS)/public/gpt-2 --json docs/figures/generation.json \
	    $(if $(OPTIMUM),--optimum $(OPTIMUM)) \
	    $(if $(INCUMBENT_DEMO),--incumbent $(INCUMBENT)/python --incumbent_demo $(INCUMBENT_DEMO)); fi
	$(BIN)/python benchmarks/scaling.py --json docs/figures/scaling.json
	$(BIN)/python benchmarks/report.py docs

# Only for `omz_converter -p ... --mo ...`: an IR made by Model Optimizer, for runtimes and archives of its time.
mo-env: $(OMZ_MO_ENV)/mo.stamp
	@echo "Model Optimizer is there. An IR by it:"
	@echo "  $(BIN)/omz_converter -p $(OMZ_MO_ENV)/bin/python --mo $(OMZ_MO_ENV)/bin/mo --name ..."

clean:
	rm -rf $(VENV) .venv-mo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/run.stamp: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 15) else \
	    "Python 3.11 to 3.14 is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the libraries; this takes a few minutes."
	$(BIN)/python -m pip install --quiet --editable '.[pytorch,serve]'
	@# pip compiles what it copies, and this package stays where it is; where Python may not, each start would do it.
	$(BIN)/python -m compileall -q omz_tools
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --editable '.[pytorch,serve,dev]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --editable '.[pytorch,serve,bench]'
	touch $@

# Our constraints are of another set of versions.
$(OMZ_MO_ENV)/mo.stamp: requirements-mo.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 9) <= sys.version_info < (3, 13) else \
	    "Model Optimizer needs Python 3.9 to 3.12, this is " + sys.version.split()[0] + "; name another with PYTHON=...")'
	$(PYTHON) -m venv $(OMZ_MO_ENV)
	PIP_CONSTRAINT= $(OMZ_MO_ENV)/bin/python -m pip install --quiet --requirement requirements-mo.txt
	touch $@
