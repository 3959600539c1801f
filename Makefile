# Needs Python 3.11 or newer and a C++ compiler. The first installation builds mmcv.
#   make test SYSTEM_TORCH=1    use the torch and torchvision that $(PYTHON) already has
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/pip install --no-build-isolation --constraint .venv/constraints.txt

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
# nothing. pip may also have kept an mmcv built against another torch: then it is built again. Without debug information, which
# Python's own flags ask for, a file of mmcv compiles in half the time; pip shows that it still does.
.venv/installed: export CFLAGS += -g0
.venv/installed: constraints.txt pyproject.toml Makefile
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) .venv
	$(if $(SYSTEM_TORCH),grep -vE '^(torch|torchvision|triton|numpy)==',cat) constraints.txt > .venv/constraints.txt
	$(PIP) --quiet setuptools wheel ninja psutil torch torchvision
	@echo 'mmcv is built from source where pip does not have it: about ten minutes on two cores'
	$(PIP) onedl-mmcv
	$(BIN)/python -c 'import mmcv.ops' || $(PIP) --no-cache-dir --force-reinstall --no-deps onedl-mmcv
	$(BIN)/python -c 'import mmcv.ops'
	$(PIP) --quiet --editable '.[openmmlab,dev]'
	touch $@

clean:
	rm -rf .venv dist work_dirs data/shapes
