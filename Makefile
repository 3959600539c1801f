# Needs Python 3.11 or newer and a C++ compiler. The first installation builds mmcv: 12 to 30 minutes on two cores.
#   make test SYSTEM_TORCH=1    use the torch and torchvision that $(PYTHON) already has
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/pip install --quiet --no-build-isolation --constraint .venv/constraints.txt

.PHONY: demo test lint wheel install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: install
	$(BIN)/python -m build --no-isolation --outdir dist .

install: .venv/installed

# torch comes before mmcv, which is built against it; without torch mmcv would install, without its operators, and say
# nothing. pip may also have kept an mmcv built against another torch: then it is built again.
.venv/installed: constraints.txt pyproject.toml Makefile
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) .venv
	$(if $(SYSTEM_TORCH),grep -vE '^(torch|torchvision|triton|numpy)==',cat) constraints.txt > .venv/constraints.txt
	$(PIP) setuptools wheel ninja psutil torch torchvision
	$(PIP) onedl-mmcv
	$(BIN)/python -c 'import mmcv.ops' || $(PIP) --no-cache-dir --force-reinstall --no-deps onedl-mmcv
	$(BIN)/python -c 'import mmcv.ops'
	$(PIP) --editable '.[openmmlab,dev]'
	touch $@

clean:
	rm -rf .venv dist work_dirs data/shapes
