"""The command line, its errors and its exit codes; the demo's numbers are in test_demo.py."""

import subprocess
import sys
from pathlib import Path

import pytest

import qatcore
from qatcore._cli.command import main

ROOT = Path(qatcore.__file__).parents[1]


def run_python(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def exit_code(*argv):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    return raised.value.code


def test_version(capsys):
    assert exit_code("--version") == 0
    assert capsys.readouterr() == (f"qatcore {qatcore.__version__}\n", "")


def test_help_names_every_command(capsys):
    assert exit_code("--help") == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: qatcore ")
    assert "demo" in out
    assert not err


def test_help_of_a_command_ends_with_an_example(capsys):
    assert exit_code("demo", "--help") == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: qatcore demo ")
    assert max(map(len, out.splitlines())) <= 80
    assert out.endswith("\nexample:\n  qatcore demo --seed 1\n")
    assert not err


def test_no_command_prints_help_and_fails(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("usage: qatcore ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fly"], "'fly'"),
        (["--fly"], "--fly"),
        (["demo", "fly"], "fly"),
        (["demo", "--see", "1"], "--see"),
        (["demo", "--seed"], "--seed"),
        (["demo", "--seed", "x"], "expected an integer from 0 to 4294967295, got 'x'"),
        (["demo", "--seed", "-1"], "got '-1'"),
        (["demo", "--seed", "1.5"], "got '1.5'"),
        (["demo", "--seed", "4294967296"], "got '4294967296'"),
        (["demo", "--seed", "9" * 5000], "expected an integer"),
        (["demo", "--seed", ""], "got ''"),
    ],
)
def test_a_wrong_argument_is_one_line(argv, said, capsys):
    assert exit_code(*argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("qatcore: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        ("quantise model.onnx", "quantize"),
        ("QUANTIZE model.onnx", "quantize"),
        ("calibrte model.onnx", "calibrate"),
        ("compair a.onnx b.onnx", "compare"),
        ("--versoin", "--version"),
        ("quantize model.onnx --dta x.npz -o y.onnx", "--data"),
        ("compare a.onnx b.onnx --dat=x.npz", "--data"),  # what is required is missing as well
        ("quantize model.onnx --per-tenser -o y.onnx", "--per-tensor"),
        ("quantize model.onnx --outptu=y.onnx", "--output"),
        ("quantize model.onnx -output y.onnx", "--output"),
        ("inspect model.onnx -json", "--json"),
        ("quantize model.onnx --method min-max -o y.onnx", "minmax"),
        ("quantize model.onnx --method precentile -o y.onnx", "percentile"),
        ("quantize model.onnx --weights INT8 -o y.onnx", "int8"),
        ("quantize model.onnx --activations unit8 -o y.onnx", "uint8"),
        ("demo --sed 1", "--seed"),
    ],
)
def test_a_near_miss_suggests_what_was_meant(argv, meant, capsys):
    assert exit_code(*argv.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("qatcore: ")
    assert err.endswith(f"; did you mean {meant}?\n")
    assert err.count("\n") == 1


def test_what_is_near_nothing_suggests_nothing(capsys):
    for argv in (["fly"], ["--fly"], ["quantize", "model.onnx", "--weights", "x", "-o", "y"]):
        assert exit_code(*argv) == 2
        assert "did you mean" not in capsys.readouterr().err


def test_values_are_not_taken_for_options(capsys):
    """Nor what comes after --, or after a command for an option of the whole."""
    assert exit_code("quantize", "--help") == 0
    capsys.readouterr()
    assert exit_code("inspect", "--", "--jsn", "x") == 2
    assert "did you mean" not in capsys.readouterr().err


def test_demo_without_scikit_learn():
    # None in sys.modules makes the import fail just as a missing package does.
    done = run_python(
        "-c",
        "import sys; sys.modules['sklearn'] = None\nfrom qatcore._cli.command import main; sys.exit(main(['demo']))",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "qatcore: the demo needs scikit-learn: pip install 'qatcore[demo]'\n"


def test_an_import_error_of_our_own_is_not_taken_for_a_missing_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "qatcore._cli.demo", None)
    with pytest.raises(ModuleNotFoundError, match=r"qatcore\._cli\.demo"):
        main(["demo"])


def test_module_is_the_command():
    done = run_python("-m", "qatcore", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"qatcore {qatcore.__version__}\n", "")
    done = run_python("-m", "qatcore", "fly")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qatcore: ")


@pytest.mark.slow
def test_demo_from_the_command_line():
    done = run_python("-m", "qatcore", "demo", "--seed", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("int8") == len(qatcore.CalibMethod) - 1  # AUTO is one of the others
    assert done.stdout.endswith(".\n")


@pytest.mark.slow
def test_a_reader_that_leaves_gets_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "qatcore", "demo"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "rich"])
def test_commands_on_models_name_what_is_missing(package):
    done = run_python(
        "-c",
        f"import sys; sys.modules[{package!r}] = None\n"
        "from qatcore._cli.command import main; sys.exit(main(['inspect', 'model.onnx']))",
    )
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == ("", f"qatcore: inspect needs {package}: pip install 'qatcore[onnx]'\n")
