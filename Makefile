# make demo: a blurred clip comes out sharper. make test: everything that needs neither network nor GPU.
# Both set up .venv by themselves. PYTHON chooses the interpreter (3.10 to 3.13).
# WORKERS is how many processes the tests run in.
# make serve-test: the tests with a real Triton server, from a virtual environment of its own.
# make gpu-check: checks and times on a GPU, with what PYTHON has; ARGS are its options (ARGS=--quick).
PYTHON ?= python3
VENV := .venv
SERVE := .venv-serve
# setuptools tells every editable install of a project that folders of the working directory could shadow it.
PIP := PYTHONWARNINGS="ignore:Editable installation" \
  $(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt
OUT := demo-out
WORKERS ?= 2
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: demo test serve-test lint gpu-check soak clean

demo: $(VENV)/.demo
	@mkdir -p $(OUT)
	$(VENV)/bin/mtu-run calib/demo/blurred.mp4 -o $(OUT)/restored.mp4 --crf 8 --overwrite
	@$(VENV)/bin/python -m mtu.calib.quality_cli $(OUT)/restored.mp4 --blurred calib/demo/blurred.mp4 --sharp calib/demo/sharp.mp4 \
	  --picture $(OUT)/comparison.png

test: $(VENV)/.dev lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

soak: $(VENV)/.dev
	$(VENV)/bin/python tools/soak.py $(ARGS)

serve-test: $(SERVE)/.ready
	OMP_NUM_THREADS=1 $(SERVE)/bin/python -m pytest -q tests/farm/test_triton_server.py tests/farm/test_triton_deaths.py

gpu-check:
	$(PYTHON) tools/links.py
	PYTHONPATH="$(CURDIR)/.links$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m mtu.benchmarks.gpu_check $(ARGS)

$(VENV)/bin/python:
	@echo "setting up $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -U pip

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing OpenVINO, onnxruntime and what measures pictures"
	@$(PIP) -e ".[cpu,compare]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt tools/links.py | $(VENV)/bin/python
	$(PIP) -e ".[cpu,export,compare,train,rtx,farm,dev]"
	$(VENV)/bin/python tools/links.py
	touch $@

# The server's wheel is for numpy 1.
$(SERVE)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --disable-pip-version-check -q -U pip
	$(SERVE)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt \
	  "nvidia-pytriton==0.7.0" "numpy<2" pytest pytest-timeout -e ".[cpu,triton]"
	touch $@

clean:
	rm -rf $(VENV) $(SERVE) $(OUT) .links build *.egg-info
