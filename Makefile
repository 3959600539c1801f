# Needs Python 3.11 or newer (test-upstream: 3.10 or 3.11) and a C++ compiler. The first installation builds mmcv.
#   make test SYSTEM_TORCH=1    use the torch and torchvision of $(PYTHON)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-upstream lint docs wheel install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python -m pytest

# With OpenMMLab's last upstream release and the torch of that time, in a separate environment.
test-upstream: .venv-upstream/installed
	.venv-upstream/bin/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site, in site/. A warning, such as a broken link, is an error.
docs: install
	$(BIN)/mkdocs build --strict

wheel: install
	$(BIN)/python -m build --no-isolation --outdir dist .

install: .venv/installed

.venv/installed: constraints.txt
.venv/installed: CONSTRAINTS = constraints.txt
.venv/installed: MMCV = onedl-mmcv
.venv/installed: REST = --editable '.[segmentation,dev,docs]'
.venv-upstream/installed: constraints-upstream.txt
.venv-upstream/installed: CONSTRAINTS = constraints-upstream.txt
.venv-upstream/installed: MMCV = mmcv
.venv-upstream/installed: REST = mmdet mmpretrain mmsegmentation ftfy regex --editable '.[dev]'

# torch is installed before mmcv, which is built against it; without torch, mmcv silently installs without its operators. If pip
# has cached an mmcv that was built against another torch, it is built again. -g0 turns off the debug information that Python's own
# flags request, which halves the build time (17 s instead of 33 s for two of its 78 files on two cores). The build cannot leave out
# operators. pip is not quiet here, to show that it is still building.
%/installed: export CFLAGS += -g0
%/installed: PIP = $*/bin/pip install --no-build-isolation --constraint $*/constraints.txt
%/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $*
	$(if $(SYSTEM_TORCH),grep -vE '^(torch|torchvision|triton|numpy)==',cat) $(CONSTRAINTS) > $*/constraints.txt
	@echo 'downloading torch: a few gigabytes'
	$(PIP) --quiet setuptools wheel ninja psutil torch torchvision
	@echo 'building mmcv from source unless pip has cached it: about ten minutes on two cores'
	$(PIP) $(MMCV)
	$*/bin/python -c 'import mmcv.ops' || $(PIP) --no-cache-dir --force-reinstall --no-deps $(MMCV)
	$*/bin/python -c 'import mmcv.ops'
	$(PIP) --quiet $(REST)
	touch $@

clean:
	rm -rf .venv .venv-upstream dist site work_dirs data/shapes
