# make demo   repair the example photos with the embedded model; pictures land in results/demo
# make test   run the tests        make slow   run the long ones        make lint   run ruff and mypy
# make wheel  build the package, install it into an empty environment and repair a picture with it
#
# Each makes .venv by itself, from the pinned versions in configs/constraints.txt. Which build of
# PyTorch comes is for one variable to say; without it, pip takes what it finds (on Linux from PyPI:
# the CUDA build, several GB):
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu       CPU only
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130     CUDA 13
# PYTHON=python3.12 chooses the interpreter (3.11 or newer). WORKERS=1 runs the tests one after
# another. `make clean` removes .venv, to choose again.

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= auto
VENV := .venv
INSTALL := -m pip install --quiet --disable-pip-version-check -c configs/constraints.txt
PIP := $(VENV)/bin/python $(INSTALL)
PINS := pyproject.toml configs/constraints.txt
EXAMPLES := pisasr/demo/examples
RESULTS := results/demo

.PHONY: demo test slow lint wheel clean

demo: $(VENV)/.base
	$(VENV)/bin/python scripts/infer.py --input $(EXAMPLES) --output $(RESULTS)
	$(VENV)/bin/python scripts/infer.py --input $(EXAMPLES)/coffee.png --output $(RESULTS)/grid \
	    --lambda_grid 0,0.5,1,1.5 0,0.5,1,1.5
	@echo "The repaired photos, and what the two lambdas do to one of them (rows lambda_pix, columns lambda_sem):"
	@find $(RESULTS) -maxdepth 2 -name '*.png' | sort

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) -m "not slow" --durations 10

slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

wheel: $(VENV)/.dev
	rm -rf dist build $(VENV)-wheel
	$(VENV)/bin/python -m build --wheel .
	$(PYTHON) -m venv $(VENV)-wheel
	$(if $(TORCH_INDEX),$(VENV)-wheel/bin/python $(INSTALL) --index-url $(TORCH_INDEX) torch)
	$(VENV)-wheel/bin/python $(INSTALL) dist/*.whl
	cd dist && ../$(VENV)-wheel/bin/pisasr infer --input ../$(EXAMPLES)/chelsea.png --output repaired
	@ls dist/repaired/chelsea.png

$(VENV)/.base: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "pisasr wants Python 3.11 or newer, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Making $(VENV): a minute or two ..."
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-wheel dist build
