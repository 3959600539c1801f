# Needs Python 3.11 or newer (test-upstream: 3.10 or 3.11) and a C++ compiler. The first installation builds mmcv.
#   make test SYSTEM_TORCH=1    use the torch and torchvision that $(PYTHON) already has
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-upstream lint wheel install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python -m pytest

# With OpenMMLab's last upstream release and the torch of its time, in an environment of its own.
test-upstream: .venv-upstream/installed
	.venv-upstream/bin/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: install
	$(BIN)/python -m build --no-isolation --outdir dist .

install: .venv/installed

.venv/installed: constraints.txt
.venv/installed: CONSTRAINTS = constraints.txt
.venv/installed: MMCV = onedl-mmcv
.venv/installed: REST = --editable '.[segmentation,dev]'
.venv-upstream/installed: constraints-upstream.txt
.venv-upstream/installed: CONSTRAINTS = constraints-upstream.txt
.venv-upstream/installed: MMCV = mmcv
.venv-upstream/installed: REST = mmdet mmpretrain mmsegmentation ftfy regex --editable '.[dev]'

# torch comes before mmcv, which is built against it; without torch mmcv would install, without its operators, and say
# nothing. pip may also have kept an mmcv built against another torch: then it is built again. Without debug information, which
# Python's own flags ask for, a file of mmcv compiles in half the time (17 s instead of 33 for two of its 78 on two cores). Its
# build has no way to leave out operators. pip shows that it is still building.
%/installed: export CFLAGS += -g0
%/installed: PIP = $*/bin/pip install --no-build-isolation --constraint $*/constraints.txt
%/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $*
	$(if $(SYSTEM_TORCH),grep -vE '^(torch|torchvision|triton|numpy)==',cat) $(CONSTRAINTS) > $*/constraints.txt
	@echo 'torch is some gigabytes to fetch'
	$(PIP) --quiet setuptools wheel ninja psutil torch torchvision
	@echo 'mmcv is built from source where pip does not have it: about ten minutes on two cores'
	$(PIP) $(MMCV)
	$*/bin/python -c 'import mmcv.ops' || $(PIP) --no-cache-dir --force-reinstall --no-deps $(MMCV)
	$*/bin/python -c 'import mmcv.ops'
	$(PIP) --quiet $(REST)
	touch $@

clean:
	rm -rf .venv .venv-upstream dist work_dirs data/shapes
