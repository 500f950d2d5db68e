"""The shell scripts, with a stand-in for the interpreter of .venv that writes down what it is asked to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = f"""#!/usr/bin/env bash
case "$*" in
*--check*) [ -e no-lab ] && echo "netlab: namespaces are refused" >&2 && exit 69; exit 0 ;;
*available*) [ ! -e unbuilt ] ;;
*"-m pip"* | *train.py* | *pytest*)
    echo "$*" >>calls
    if [[ "$*" = *"-e ."* ]]; then
        echo "$CC_ISAS ${{CC_BUILD_CUDA:-auto}}" >built
        [ ! -e compiles ] || for n in 1 2 3 4 5 6 7 8; do echo "  [$n/8] Building"; /bin/sleep 0.1; done
    fi
    [ ! -e fails ] ;;
*) exec {sys.executable} "$@" ;;
esac
"""
SHORT = "#!/bin/sh\nexec /bin/sleep 0.05\n"
"""Whoever waits for something and looks again each second looks more often."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the scripts look at, with a .venv and the tools that they would otherwise install."""
    for name in ("launch", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in {"python": STAND_IN, "tc": "#!/bin/sh\n", "c++": "#!/bin/sh\n", "sleep": SHORT}.items():
        put(tmp_path / (".venv/bin" if name == "python" else "tools") / name, text)
    return tmp_path


def put(program: Path, text: str) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


def bash(checkout: Path, *arguments: str, **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and the calls of the stand-in."""
    environment = {**os.environ, "PATH": f"{checkout / 'tools'}:{os.environ['PATH']}", "CI": "1", **variables}
    command, limit = ["bash", *arguments], patience(60)
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=limit)
    calls = checkout / "calls"
    said = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return done.returncode, done.stdout + done.stderr, said


def test_setup_installs_once_and_again_after_a_change(checkout: Path) -> None:
    """A failed installation is not remembered. A compiler's failure ends in a pure-Python install, which works: but not
    without a word. The package itself is built beside its requirements, so its own name must not be among those."""
    setup = str(checkout / "launch" / "setup.sh")
    (checkout / "fails").touch()
    assert bash(checkout, setup, "test")[0] != 0
    (checkout / "fails").unlink()
    (checkout / "unbuilt").touch()
    code, said, calls = bash(checkout, setup, "test")
    assert code == 0 and "kernels did not build" in said and "build/setup.log" in said, said
    kernels, others = sorted(calls, key=lambda call: " -r " in call)
    assert "--no-deps -e ." in kernels and "-c launch/constraints.txt -r build/requirements.txt" in others
    named = [re.split(r"[^\w-]", line)[0] for line in (checkout / "build/requirements.txt").read_text().splitlines()]
    assert {"torch", "numpy", "matplotlib", "rich", "triton", "pytest"} <= set(named)
    assert "compcomm" not in named and len(named) == len(set(named))
    assert bash(checkout, setup, "test")[2] == []
    (checkout / "unbuilt").unlink()
    kernel = next((checkout / "csrc").rglob("*.cpp"))
    kernel.write_text(kernel.read_text() + "// changed\n")
    code, said, calls = bash(checkout, setup, "test")
    assert len(calls) == 2 and "kernels did not build" not in said
    assert "compcomm[bench,test]" in bash(checkout, setup, "test", "bench")[1]
    assert bash(checkout, setup, "test")[2] == []
    code, said, calls = bash(checkout, setup, "nonsense")
    assert code != 0 and "no extra is called 'nonsense'; there are bench, gpu" in said and calls == []


def test_setup_builds_for_this_machine_and_for_tests_all_that_it_runs(checkout: Path) -> None:
    """One instruction set and no CUDA without a GPU; what was built for tests is not undone by the quickstart."""
    setup, built = str(checkout / "launch" / "setup.sh"), checkout / "built"

    def sets(*extras: str, **variables: str) -> str:
        built.unlink(missing_ok=True)
        code, said, _ = bash(checkout, setup, *extras, **variables)
        assert code == 0, said
        return built.read_text().strip() if built.exists() else "nothing"

    assert sets("bench") == "native off"
    assert sets("bench") == "nothing"
    assert sets("test") == "runnable off"
    assert sets("bench") == sets("test") == "nothing"
    assert sets("gpu") == "runnable off"
    assert sets("bench", CC_ISAS="all") == "all off"
    assert sets("bench") == sets("test") == "nothing"
    assert sets("bench", CC_ISAS="baseline", CC_BUILD_CUDA="on") == "baseline on"
    assert sets("bench") == "native off"
    assert sets("test") == "runnable off"
    put(checkout / "tools" / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: one'\n")
    assert sets("test") == "runnable auto"


def test_setup_shows_how_far_the_compiler_is(checkout: Path) -> None:
    (checkout / "compiles").touch()
    code, said, _ = bash(checkout, str(checkout / "launch" / "setup.sh"), "bench")
    assert code == 0, said
    shown = re.findall(r"compiled (\d+) % \((\d+) of 8\)", said)
    assert shown[-1] == ("100", "8") and 2 <= len(shown) <= 4
    assert [int(p) for p, _ in shown] == sorted({100 * int(n) // 8 for _, n in shown})


@pytest.mark.parametrize("allowed", [True, False])
def test_system_packages_are_named_before_they_are_installed(checkout: Path, allowed: bool) -> None:
    """On a machine without `tc` and `c++`, as root: one line, then apt-get; COMPCOMM_NO_APT=1 leaves it alone."""
    folder = checkout / "bare"  # everything but those two
    folder.mkdir()
    for found in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        target = folder / found.name
        if found.name not in ("sleep", "tc", "c++", "g++", "clang++", "apt-get", "id") and not target.is_symlink():
            target.symlink_to(found)
    for name, text in {"id": "echo 0", "apt-get": 'echo "apt-get $*" >>calls', "sleep": "exec /bin/sleep 0.05"}.items():
        put(folder / name, f"#!/bin/sh\n{text}\n")
    setup = checkout / "launch" / "setup.sh"  # system folders are looked through as well
    setup.write_text(setup.read_text().replace(":/usr/sbin:/sbin", ""))
    variables = {"PATH": str(folder), "COMPCOMM_NO_APT": "0" if allowed else "1"}
    code, said, calls = bash(checkout, str(setup), "test", **variables)
    assert code == 0, said
    assert ("setup: installing system packages with apt-get: iproute2 g++" in said) is allowed
    assert ("apt-get install -y -qq iproute2 g++" in calls) is allowed
    assert "no `tc` here (iproute2 is not installed): no shaped links" in said
    assert "no `c++` here (g++ is not installed): no C++ kernels" in said


def test_without_a_gpu_the_gpu_check_says_so_and_is_done(checkout: Path) -> None:
    put(checkout / "tools" / "nvidia-smi", "#!/bin/sh\necho no driver answers\nexit 9\n")
    code, said, calls = bash(checkout, str(checkout / "launch" / "gpu_check.sh"), str(checkout / "found"))
    assert (code, calls) == (0, [])
    assert "skipped: no GPU here that a driver knows of (nvidia-smi: no driver answers)" in said
    assert bash(checkout, str(checkout / "launch" / "gpu_check.sh"))[0] == 1  # no folder


@pytest.mark.parametrize("fails", [False, True])
def test_the_gpu_check_leaves_json_and_goes_on_where_a_part_fails(checkout: Path, fails: bool) -> None:
    """With a stand-in for the driver, and one for Python: tests that leave a report, and measurements."""
    report = (
        '<testsuite><testcase classname="t" name="a"/><testcase classname="t" name="b"><skipped message="why"/>'
        '</testcase><testcase classname="t" name="c"><failure message="wrong"/></testcase></testsuite>'
    )
    for name, text in {
        "tools/nvidia-smi": "#!/bin/sh\necho 'Some GPU, 1.2, 80 GiB'\n",
        ".venv/bin/python": f"""#!/usr/bin/env bash
case "$*" in
*device.json*) echo "{{}}" >"$(dirname "$0")/../../found/device.json" ;;
*available* | *"-m pip"*) exit 0 ;;
*"-m pytest"*) for last; do :; done; printf '%s' '{report}' >"${{last#--junitxml=}}"; exit {int(fails)} ;;
*kernels.py*) for last; do :; done; echo '[]' >"$last"; echo "row skipped: no cupy" ;;
*) exec {sys.executable} "$@" ;;
esac
""",
    }.items():
        put(checkout / name, text)
    folder = checkout / "found"
    code, said, _ = bash(checkout, str(checkout / "launch" / "gpu_check.sh"), str(folder))
    assert code == int(fails), said
    assert [p["part"] for p in json.loads((folder / "summary.json").read_text())] == [
        "setup", "device", "tests", "collect", "kernels",
    ]  # fmt: skip
    assert json.loads((folder / "tests.json").read_text()) == {
        "passed": ["t::a"], "failed": {"t::c": "wrong"}, "skipped": {"t::b": "why"},
    }  # fmt: skip
    assert "skipped: t::b - why" in said and "row skipped: no cupy" in said
    assert ("tests: FAILED with code 1" in said) is fails
    assert json.loads((folder / "kernels.json").read_text()) == []


def test_test_script_passes_arguments_on_and_keeps_the_exit_code(checkout: Path) -> None:
    script = str(checkout / "launch" / "test.sh")
    bash(checkout, script)
    code, _, calls = bash(checkout, script, "-x", "tests/ops")
    assert (code, calls) == (0, ["-m pytest -n 2 --dist loadfile --no-loadscope-reorder -x tests/ops"])
    (checkout / "fails").touch()
    assert bash(checkout, script)[0] == 1


@pytest.mark.parametrize("lab", [True, False])
def test_quickstart_runs_in_a_lab_or_says_that_there_is_none(checkout: Path, lab: bool) -> None:
    if not lab:
        (checkout / "no-lab").touch()
    code, said, calls = bash(checkout, str(checkout / "launch" / "quickstart.sh"), "--seconds", "1")
    assert code == 0, said
    job = calls[-1]
    assert job.endswith("--seconds 1") and job.count("--reducer") == 5
    assert ("netlab --hosts 2 --rate 100mbit" in job) is lab
    assert ("torch.distributed.run" in job and "--link 100mbit" in job) is not lab
    assert ("no shaped links here" in said and "refused" in said) is not lab


@pytest.mark.slow
def test_results_keep_what_they_had_when_a_step_fails(checkout: Path) -> None:
    """Every step writes its JSON; one that fails ends the script under its name, and its old file stays."""
    (checkout / "benchmarks").mkdir()
    script = shutil.copy(ROOT / "benchmarks" / "results.sh", checkout / "benchmarks")
    (checkout / ".venv" / "bin" / "python").write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        "*--check | *pip* | *ops.native*) ;;\n"
        "*torch.cuda*) exit 1 ;;\n"
        "*optimizers.py\\ plot*) ;;\n"
        "*train.py*) mkdir -p runs/quickstart; touch runs/quickstart/quickstart.{json,png} ;;\n"
        '*compressors.py*) touch runs/results/compressors.png; date +%N >"${*: -1}" ;;\n'
        '*"--json "*) echo half >"${*: -1}"; [[ -e fails && "$*" = *100mbit* ]] && exit 3; date +%N >"${*: -1}" ;;\n'
        "*results_page.py) echo page >>calls ;;\n"
        f'*) exec {sys.executable} "$@" ;;\n'
        "esac\n"
    )
    results = checkout / "benchmarks" / "results"
    code, said, calls = bash(checkout, script)
    assert (code, calls) == (0, ["page"]), said
    exchanges = {f"exchange-{name}.json" for name in ("2-hosts-1gbit", "2-hosts-100mbit", "4-hosts-1gbit")}
    experiments = {
        f"convergence-{name}.json" for name in ("digits", "charlm", "three-workers", "weights", "econtrol", "lyapunov")
    }  # and no logistic regression: LIBSVM= names no folder
    links = [f"{hosts}-hosts-{rate}" for hosts in (2, 4) for rate in ("1gbit", "100mbit")]
    throughputs = {f"throughput-{model}-{link}" for model in ("resnet50", "gpt2") for link in links}
    optimizers = {
        f"optimizers-{name}.json"
        for name in throughputs | {"convergence-digits", "convergence-charlm", "arithmetic", "model"}
    }
    adaptive = {f"adaptive-{name}.json" for name in ("gains", "rivals", "phases", "allocation")} | {
        f"adaptive-{name}.json"
        for name in ("train-digits", "train-charlm", "cost-charlm", "cost-resnet50", "auto-charlm", "auto-resnet50")
    }
    planned = {"plan-resnet50.json"} | {
        f"planner-{hosts}-hosts-{rate}.json" for hosts in (2, 4) for rate in ("100mbit", "300mbit", "1gbit")
    }
    sharded = {f"sharded-{name}.json" for name in ("links", "loopback", "losses")}
    on_a_gpu = {"kernels-cuda.json"}  # where there is one
    found = {file.name for file in results.iterdir()} - on_a_gpu
    assert found == exchanges | experiments | optimizers | adaptive | planned | sharded | {
        "compressors.json", "compressors.png", "kernels.json", "memory.json", "overhead.json", "quickstart.json",
        "quickstart.png", "set-up.json", "thrown-away.json",
    }  # fmt: skip
    before = {file.name: file.read_text() for file in results.iterdir()}
    (checkout / "fails").touch()
    code, said, calls = bash(checkout, script)
    assert (code, calls) == (3, []) and "results: exchange-2-hosts-100mbit failed with exit code 3" in said
    changed = {file.name for file in results.iterdir() if file.read_text() != before[file.name]}
    assert changed - on_a_gpu == experiments | {
        "kernels.json",
        "compressors.json",
        "overhead.json",
        "memory.json",
        "thrown-away.json",
        "exchange-2-hosts-1gbit.json",
    }


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.parametrize(("bits", "lives", "code"), [("same", 2, 0), ("other", 2, 1), ("same", 1, 1)])
def test_elastic_compares_the_ends_of_its_runs(checkout: Path, bits: str, lives: int, code: int) -> None:
    """Four runs; the one with a killed worker must have had two lives, and have ended as the unbroken one did."""
    (checkout / ".venv" / "bin" / "python").write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        "*pip* | *ops.native*) ;;\n"
        '*elastic.py*) echo "$*" >>calls\n'
        '    folder=$(sed "s/.*--folder \\([^ ]*\\).*/\\1/" <<<"$*"); mkdir -p "$folder"\n'
        f"    if [[ $* = *--kill* ]]; then bits={bits} lives={lives}; else bits=same lives=1; fi\n"
        '    printf \'{"loss": 0.5, "parameters": "%s", "pending": 1.5, "lives": %s}\' '
        '$bits $lives >"$folder/end.json" ;;\n'
        f'*) exec {sys.executable} "$@" ;;\n'
        "esac\n"
    )
    found, said, calls = bash(checkout, str(checkout / "launch" / "elastic.sh"), "--every", "5")
    assert found == code, said
    assert ("the same bits" in said) is (bits == "same")
    assert ("nobody was killed" in said) is (lives == 1)
    assert ["--kill 117" in call for call in calls] == [False, True, False, False]
    assert [re.findall(r"--nproc-per-node (\d)", call)[0] for call in calls] == ["2", "2", "4", "2"]
    assert all("--standalone" in call and "--max-restarts 3" in call and "--every 5" in call for call in calls)


def test_what_ci_runs_and_what_is_pinned() -> None:
    assert (ROOT / ".ci" / "run").read_text().split("\n")[1:] == ['exec bash "$(dirname "$0")/../launch/test.sh"', ""]
    assert "torch==2.13.0" in (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    assert all(
        os.access(ROOT / name, os.X_OK)
        for name in (".ci/run", "launch/test.sh", "launch/quickstart.sh", "launch/elastic.sh")
    )
