PYTHON ?= python3
BIN := .venv/bin
# TensorFlow's notes about the machine are not for the readers of a demo.
QUIET := TF_CPP_MIN_LOG_LEVEL=2 HF_HUB_OFFLINE=1

.PHONY: install demo test quick lint docs clean

install: .venv/installed

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: install
	$(QUIET) $(BIN)/python -m algpt2_tf.train --strategy mirrored --preset algpt2-tiny --dataset python-docs \
		--max-steps 500 --length 128 --batch-size 16 --learning-rate 3e-3 --output-dir runs/demo --overwrite
	$(QUIET) $(BIN)/python -m convert tf2pt runs/demo
	$(QUIET) $(BIN)/python -m convert verify runs/demo --dataset python-docs --length 128 --prompt "The value of"

test: install
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests

quick: install
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv build *.egg-info runs .pytest_cache .ruff_cache
