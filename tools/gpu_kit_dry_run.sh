#!/usr/bin/env bash
# Runs what an offline GPU host would run, with the kit's own interpreter, as far as it goes without a GPU.
#   tools/gpu_kit_dry_run.sh KIT [PLUGIN_LIBRARY]
# KIT is a folder of pieces (0/part 1/part ... and unpack.sh), or a kit that is unpacked already (it holds python310).
# With PACK=SCRIPT in the environment, `SCRIPT KIT` packs it first if KIT is empty. PLUGIN_LIBRARY is the C++ plugin.
# Each step says what it proves; exit code 1 if one fails. Writes to a temporary folder alone.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" && kit=$(cd "$1" && pwd)
plugin=${2:+$(realpath "$2")}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
failed=0

step() {  # WHAT IT PROVES, COMMAND: its output is shown where it fails
  local began=$SECONDS
  if "${@:2}" > "$work/said" 2>&1 < /dev/null; then echo "PROVED: $1 ($((SECONDS - began)) s)"
  else failed=1; echo "FAILED: $1"; tail -15 "$work/said" | sed 's/^/    /'; fi
}

if [ -n "${PACK:-}" ] && [ -z "$(ls -A "$kit")" ]; then "$PACK" "$kit" || { echo "FAILED: the kit is packed"; exit 1; }; fi
if [ -x "$kit/python310" ]; then python=$kit/python310
else
  small() { [ -z "$(find "$kit"/[0-9]* -type f -size +64M)" ]; }
  step "no piece is larger than 64 MiB" small
  unpack() {
    mkdir "$work/pieces" && for part in "$kit"/[0-9]*/part; do ln -s "$part" "$work/pieces/$(basename "$(dirname "$part")")"; done
    "$kit/unpack.sh" "$work/pieces" "$work/unpacked"
  }
  step "the pieces join and unpack" unpack
  python=$work/unpacked/kit/python310
  [ -x "$python" ] || { echo "FAILED: there is no interpreter in the kit"; exit 1; }
fi

# A bare checkout, as it is copied to a host: nothing installed, no .links, no compiled Python.
mkdir "$work/mtu" "$work/home"
git -C "$root" ls-files -z --cached --others --exclude-standard | (cd "$root" && xargs -0 ls -d 2>/dev/null) \
  | tar -C "$root" -c -T - | tar -C "$work/mtu" -x
cd "$work/mtu" || exit 1
clean=(env -i "PATH=$PATH" "HOME=$work/home" "MTU_CACHE_DIR=$work/cache")
python_here=("${clean[@]}" "PYTHONPATH=$work/mtu/.links" "$python")
run() { "${python_here[@]}" "$@"; }
code() { run -c "$(cat "$work/code")"; }
expect() {  # CODE, TEXT, COMMAND: ends with this code and says this
  local answer=0 said; said=$("${@:3}" 2>&1) || answer=$?
  echo "$said"; echo "exit code $answer, wanted $1 and: $2"; [ "$answer" = "$1" ] && [[ $said == *"$2"* ]]
}

step "the kit's Python runs tools/links.py" "${clean[@]}" "$python" tools/links.py
step "the version is known without an installation" run -m mtu.runtime.cli --version
step "what gpu-check, builder and backend import is there (numpy, onnx, TensorRT, cuda-core)" run -c '
import cuda.bindings.driver, cuda.core, numpy, onnx, pytest, tensorrt
import mtu.benchmarks.gpu_cases, mtu.benchmarks.gpu_check, mtu.benchmarks.gpu_engines, mtu.benchmarks.gpu_first_run
import mtu.export.engine, mtu.export.engine_graph, mtu.runtime.backends, mtu.runtime.session
print(tensorrt.__version__)'
cat > "$work/code" <<'E2'
# Every library that pycuda and TensorRT name is found, but for the driver's own.
import subprocess
from pathlib import Path
import pycuda, tensorrt
folders = [Path(pycuda.__file__).parent, Path(tensorrt.__file__).parent]
missing = set()
for library in (path for folder in folders for path in folder.glob("*.so*")):
    said = subprocess.run(["ldd", library], capture_output=True, text=True).stdout
    missing |= {line.split()[0] for line in said.splitlines() if "not found" in line}
missing.discard("libcuda.so.1")
assert not missing, f"not in the kit, and looked for on the host: {', '.join(sorted(missing))}"
E2
step "pycuda and TensorRT find every library but the driver's" code
cat > "$work/code" <<'E2'
# A driver that has every function pycuda asks for, and no device: pycuda has to load beside it, and to be answered.
import os, subprocess, sys
from pathlib import Path
import pycuda
folder = Path(sys.argv[1])
library = next(Path(pycuda.__file__).parent.glob("_driver*.so"))
said = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
names = {word for word in said.split() if word.startswith("cu") and not word.startswith("curand")}
code = "int cuGetErrorString(int code, const char **text) { *text = \"no device\"; return 0; }\n"
code += "".join(f"int {name}(void) {{ return 100; }}\n" for name in sorted(names - {"cuGetErrorString"}))
(folder / "driver.c").write_text(code)
made = ["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", folder / "driver.c"]
subprocess.run(made, check=True)
asks = "from mtu.runtime.backends.cuda_device import open_device; open_device(0)"
paths = f"{folder}:{os.environ['LD_LIBRARY_PATH']}"
done = subprocess.run(
    [sys.executable, "-c", asks], env={**os.environ, "LD_LIBRARY_PATH": paths}, capture_output=True, text=True
)
print(done.stderr)
assert "no NVIDIA GPU answers (cuInit failed" in done.stderr
E2
mkdir "$work/driver"
step "pycuda loads beside a driver" run -c "$(cat "$work/code")" "$work/driver"
cat > "$work/code" <<'E2'
from mtu.plugins.correlation_argmax_warp import cuda_op as warp
from mtu.plugins.iterative_filters import cuda_op as filters
from mtu.plugins.nvrtc import compiled
for kind in ("float16", "float32"):
    problems = {
        warp.KERNEL: warp.Problem(1, 52, 180, 320, 26, motion_type=kind, detail_type=kind),
        filters.KERNEL: filters.Problem(1, 128, 90, 160, type=kind),
    }
    for kernel, problem in problems.items():
        for arch in ("sm_80", "sm_86", "sm_89", "sm_90"):
            assert compiled(kernel.text(), arch, kernel.defines(problem))
E2
step "NVRTC compiles the kernels in fp16 and fp32, for sm_80, 86, 89 and 90" code
step "gpu-check --only first-run refuses honestly without a GPU" \
  expect 2 "no NVIDIA GPU answers" "${python_here[@]}" -m mtu.benchmarks.gpu_check --only first-run
if command -v make > /dev/null; then
  step "make gpu-check does so too" \
    expect 2 "no NVIDIA GPU answers" "${clean[@]}" make -s gpu-check "PYTHON=$python" 'ARGS=--only first-run'
fi
cat > "$work/code" <<'E2'
# The builder's whole way on a made-up GPU, as far as the library's own constructor, which needs the driver.
import sys, tempfile, traceback
from pathlib import Path
from mtu.export import engine, engine_options
from mtu.runtime.bundle import open_bundle
from mtu.runtime.engine import Profile
from mtu.runtime.gpu import Gpu
engine_options.find_gpu = lambda *_: Gpu(0, "made up", "9.0", 1 << 37)
for fp16 in (False, True):
    options = engine_options.BuildOptions(Profile.fixed(216, 384), fp16=fp16, runtime="tensorrt", plugin=False)
    try:
        engine.build_engine(open_bundle(), Path(tempfile.mkdtemp()) / "E", options)
    except Exception:
        said = traceback.format_exc()
        assert "trt.Builder(" in said, said
    else:
        sys.exit("an engine was built: there is a GPU here")
E2
step "the builder prepares the graphs and comes to createInferBuilder, fp32 and fp16" code
cat > "$work/code" <<'E2'
# As gpu-check's section "tests" does: a file that says which library it needs may be left out, no other.
import subprocess, sys
from pathlib import Path
files = [path for path in sorted(Path("tests").rglob("test_*.py")) if "mark.needs_cuda" in path.read_text()]
command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "needs_cuda", "-p", "no:cacheprovider"]
done = subprocess.run([*command, "--continue-on-collection-errors", *files], capture_output=True, text=True)
print(done.stdout[-3000:], done.stderr[-1000:])
assert done.returncode in (0, 5), "a file cannot be imported"
E2
step "the tests that need a GPU are collected" code
if [ -n "$plugin" ]; then
  printf 'from mtu.plugins.register import register_plugins\nfrom mtu.runtime.tensorrt_library import load_library\nfrom mtu.plugins.op import OPS\nfrom pathlib import Path\nregister_plugins(load_library("tensorrt"), [*OPS], Path("%s"))\n' "$plugin" > "$work/code"
  step "the C++ plugins register with the kit's TensorRT" code
else echo "left out: the C++ plugin registers: give PLUGIN_LIBRARY"; fi
if [ -f "$root/.kit/first-run.npz" ]; then
  cp "$root/.kit/first-run.npz" "$work/"
  step "the saved pictures can be read" run -c "
from pathlib import Path
from mtu.benchmarks.gpu_first_run import read_reference
blurred, restored = read_reference(Path('$work/first-run.npz'))
assert len(blurred) == len(restored) == 24 and blurred[0].shape == restored[0].shape == (216, 384, 3)"
else echo "left out: the saved pictures can be read: make them with gpu_check --save-reference .kit/first-run.npz"; fi
exit $failed
