# make demo   repair the example photos with the embedded model; pictures land in results/demo
# make test   run the tests        make slow   run the long ones        make lint   run ruff and mypy
# make soak   what the tests do a part of, whole: fuzz, kills, many pictures        make audit   known holes in the pins
# make wheel  build the package, install it into an empty environment and repair a picture with it
#
# Each makes .venv by itself, from the pinned versions in configs/constraints.txt. Which build of PyTorch comes is for
# one variable to say; without it, pip takes what it finds (on Linux from PyPI: the CUDA build, several GB):
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu       CPU only
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130     CUDA 13
# HASHES=1, with the CPU's TORCH_INDEX, takes no file but those of configs/hashes.txt (Linux, x86-64, Python 3.11).
# PYTHON=python3.12 chooses the interpreter (3.11 or newer). WORKERS=1 runs the tests one after another.
# `make clean` removes .venv, to choose again.

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= auto
VENV := .venv
INSTALL := -m pip install --quiet --disable-pip-version-check -c configs/constraints.txt
PIP := $(VENV)/bin/python $(INSTALL)
HASHED = $(PIP) --require-hashes --no-deps -r configs/hashes.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PINS := pyproject.toml configs/constraints.txt
EXAMPLES := pisasr/demo/examples
RESULTS := results/demo

.PHONY: demo test slow soak audit lint wheel clean

demo: $(VENV)/.base
	$(VENV)/bin/python scripts/infer.py --input $(EXAMPLES) --output $(RESULTS) --lambda_pix 1.0 --lambda_sem 1.0
	$(VENV)/bin/python scripts/infer.py --input $(EXAMPLES)/coffee.png --output $(RESULTS)/grid \
	    --lambda_grid "0,0.5,1,1.5" "0,0.5,1,1.5"
	@echo "The repaired photos, and what the two lambdas do to one of them (rows lambda_pix, columns lambda_sem):"
	@ls $(RESULTS)/*.png $(RESULTS)/grid/*/grid.png

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) -m "not slow and not soak"

slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow

soak: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m soak

audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r configs/constraints.txt

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
	$(if $(HASHES),$(HASHED),$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch torchvision))
	$(PIP) $(if $(HASHES),--no-deps --no-build-isolation) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-audit dist build
