# make demo | test | slow | docs | lint | install | lock | clean; all but lock and clean install what they need by themselves.

# The mm stack, onedl or openmmlab: an extra of setup.py, a lock file in requirements/, an environment.
EXTRA ?= onedl
VENV ?= .venv$(addprefix -,$(filter-out onedl,$(EXTRA)))
PYTHON ?= python3
# Threads that wait without spinning: next to other work a training step takes a fifth of the time.
export OMP_WAIT_POLICY ?= PASSIVE
# Options of pytest beyond pyproject.toml.
TESTS ?=
DATA ?= data/drawn
DEMO ?= work_dirs/unet_lyft_demo

PY = $(VENV)/bin/python
LOCK = requirements/$(EXTRA).txt
PACKAGE = setup.py pyproject.toml mmseg_unet_lyft/__init__.py
INSTALLED = $(VENV)/.installed-$(EXTRA)
TESTABLE = $(VENV)/.installed-$(EXTRA)-dev
SLOW = $(VENV)/.installed-$(EXTRA)-slow
PIP = $(PY) -m pip --disable-pip-version-check --quiet

# $(call timed,NAME,COMMAND): the command, then its seconds; commas go into variables.
timed = @start=$$(date +%s); $(2) || exit $$?; echo "== $(1): $$(($$(date +%s) - start)) s"

DRAW = $(PY) tools/draw_scenes.py $(DATA) --height 300 --width 400
TRAIN = $(PY) tools/train.py configs/unet_lyft_demo.py --data-root $(DATA) --work-dir $(DEMO) --amp --seed 0
BEST = $$(ls -t $(DEMO)/best_*.pth | head -n 1)
SCORE = $(PY) tools/test.py configs/unet_lyft_demo.py $(BEST) --data-root $(DATA) --work-dir $(DEMO)/test \
	--baselines --show-dir $(DEMO)/overlays
PREDICT = $(PY) tools/predict.py $(BEST) $(DATA)/dataA/dataA/CameraRGB --out $(DEMO)/predictions --overwrite

.PHONY: install demo test slow docs lint lock clean

install: $(INSTALLED)
	@echo "environment: $(VENV)/bin/python"

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); this needs Python 3.10 or newer:" \
		"make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

# A torch that is there already stays, whatever its version or build.
$(INSTALLED): $(LOCK) $(PACKAGE) | $(PY)
	@echo "installing into $(VENV): some minutes, hundreds of megabytes"; start=$$(date +%s); \
	if $(PY) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; \
	then echo "keeping the torch in $(VENV)"; grep -v '^torch==' $(LOCK) > $(VENV)/wanted.txt; \
	else cp $(LOCK) $(VENV)/wanted.txt; fi; \
	$(PIP) install -r $(VENV)/wanted.txt && \
	$(PIP) install --no-deps --no-build-isolation -e . && \
	echo "installed in $$(($$(date +%s) - start)) s"
	@touch $@

$(TESTABLE): $(INSTALLED) requirements/dev.txt
	@start=$$(date +%s); $(PIP) install -r requirements/dev.txt && \
	echo "test tools installed in $$(($$(date +%s) - start)) s"
	@touch $@

$(SLOW): $(TESTABLE) requirements/slow.txt
	$(PIP) install -r requirements/slow.txt
	@touch $@

demo: $(INSTALLED)
	$(call timed,draw scenes,$(DRAW))
	$(call timed,train,$(TRAIN))
	$(call timed,score,$(SCORE))
	$(call timed,predict,$(PREDICT))
	@echo "results: $(DEMO): report/index.html; test/report/index.html, per-class table; overlays; predictions"

# A process a core, each with one computing thread; the tests of a file stay together, as they share what they train.
test: $(TESTABLE)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile $(TESTS)

# Also what takes long: pages in a browser (Chromium and chromedriver of the system's), the notebook, the site.
slow: $(SLOW)
	$(PY) -m pytest -m 'slow or browser' $(TESTS)

# The site, a folder to open in a browser; MkDocs' and Material's notes on their own future are left out.
docs: $(SLOW)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build
	@echo "site/index.html"

lint: $(TESTABLE)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

MADE = \# Made by make lock from setup.py and constraints.txt, for Python 3.10 and newer.
UV = --quiet --universal --python-version 3.10 --no-header --no-annotate

# Needs uv. What torch itself pins (its CUDA libraries) is left to torch, so that a CPU build stays one.
lock:
	for extra in onedl openmmlab; do \
		{ echo "$(MADE)"; uv pip compile $(UV) --extra $$extra --extra pretrained \
		-c requirements/constraints.txt setup.py \
		| grep -Ev '^(cuda|nvidia|triton)'; } > requirements/$$extra.txt; done
	{ echo "$(MADE)"; uv pip compile $(UV) --extra dev -c requirements/onedl.txt setup.py \
		| grep -Ev '^(cuda|nvidia|triton|(torch|markdown-it-py|mdurl|numpy|pillow|rich)=)'; } > requirements/dev.txt
	{ echo "$(MADE)"; uv pip compile $(UV) --extra slow -c requirements/onedl.txt setup.py \
		| grep -Ev '^(cuda|nvidia|triton|torch=)'; } > requirements/slow.txt
	@echo "wrote requirements/onedl.txt requirements/openmmlab.txt requirements/dev.txt requirements/slow.txt"

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache $(DEMO)
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "removed build products, caches and $(DEMO); $(VENV) and $(DATA) stay"
