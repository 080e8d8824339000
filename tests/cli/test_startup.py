"""The command until it runs: wrong settings, and Ctrl-C while modules are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qatcore

pytestmark = pytest.mark.any_build

ROOT = Path(qatcore.__file__).parents[1]

# What pip makes of the entry point.
SCRIPT = "import sys\nfrom qatcore._cli.command import main\nsys.exit(main())\n"
# Presses Ctrl-C when a module is imported, in a process that Python starts with this directory on its path.
INTERRUPTING = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupt(event, arguments):
    if event == "import" and arguments[0] == {!r}:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
"""


def run(arguments, path=(), **settings):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), **settings}
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        cwd=ROOT,  # `-m` finds the package there first: in a checkout that would be one without kernels
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(params=["module", "script"])
def command(request, tmp_path):
    """How the command is started."""
    if request.param == "module":
        return ["-m", "qatcore"]
    script = tmp_path / "qatcore"
    script.write_text(SCRIPT)
    return [script]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("QATCORE_CPU", "v9", "QATCORE_CPU: expected one of "),
        ("QATCORE_CPU", "\udcff", r"QATCORE_CPU: expected one of "),
        ("QATCORE_NUM_THREADS", "many", "QATCORE_NUM_THREADS: expected a positive integer, got 'many'"),
        ("QATCORE_NUM_THREADS", "0", "got '0'"),
        ("QATCORE_NUM_THREADS", "-1", "got '-1'"),
        ("QATCORE_NUM_THREADS", "1.5", "got '1.5'"),
        ("QATCORE_NUM_THREADS", "\u00b2", "QATCORE_NUM_THREADS: expected a positive integer"),
        (
            "QATCORE_NUM_THREADS",
            "9" * 5000,
            "expected a positive integer, got 5000 characters",
        ),  # more than int() takes
    ],
)
def test_a_wrong_setting_is_one_line(command, name, value, said):
    done = run([*command, "--version"], **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qatcore: QATCORE_")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    imported = run(["-c", "import qatcore"], **{name: value})
    assert imported.stderr.splitlines()[-1].startswith("qatcore.InvalidArgumentError: QATCORE_")


@pytest.mark.parametrize(
    "module",
    ["numpy", "ml_dtypes", "qatcore._kernels", "qatcore._linear.layer", "argparse", "onnx", "onnxruntime", "rich"],
)
def test_an_interrupt_during_imports(command, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format(module))
    done = run([*command, "inspect", "model.onnx"], path=[tmp_path])
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "qatcore: interrupted, nothing was written\n")


def test_other_programs_are_left_alone(tmp_path):
    """Who imports the package gets the exception, the same handler and the same hook."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING.format("qatcore._linear.layer"))
    program = "try:\n    import qatcore\nexcept KeyboardInterrupt:\n    print('caught')"
    done = run(["-c", program], path=[tmp_path])
    assert (done.returncode, done.stdout, done.stderr) == (0, "caught\n", "")
    program = (
        "import signal, sys\nbefore = signal.getsignal(signal.SIGINT), sys.excepthook\nimport qatcore._cli.command\n"
        "assert (signal.getsignal(signal.SIGINT), sys.excepthook) == before"
    )
    assert run(["-c", program]).returncode == 0


def test_who_ignores_interrupts_goes_on(command, tmp_path):
    """As under nohup."""
    ignoring = INTERRUPTING.replace("default_int_handler", "SIG_IGN").format("numpy")
    (tmp_path / "sitecustomize.py").write_text(ignoring)
    done = run([*command, "--version"], path=[tmp_path])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"qatcore {qatcore.__version__}\n", "")


def test_errors_of_our_own_keep_their_traceback(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ml_dtypes'] = None\n")
    done = run([*command, "--version"], path=[tmp_path])
    assert done.returncode == 1
    assert "ml_dtypes" in done.stderr
