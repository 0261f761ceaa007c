"""The project's checks: `nox` runs the default ones, `nox -s NAME` one, `nox --list` names all."""

import shutil
import subprocess
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "imports", "docs", "tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The Python that runs nox, which all sessions use but those whose names hold another."""


def pinned(python: str = PYTHON) -> tuple[str, ...]:
    """pip's option that takes the versions that the tests were run with on a version of Python."""
    file = Path(f"constraints-{python}.txt")
    return "-c", str(file if file.exists() else "constraints.txt")


PINNED = pinned()


def group(name: str) -> tuple[str, ...]:
    """The packages of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, name)


@nox.session
def tests(session: nox.Session) -> None:
    """Run pytest; arguments after -- go to it."""
    session.install(*pinned(session.python or PYTHON), "-e", ".", *group("test"))
    suite(session)


for version in ("3.12", "3.13"):
    nox.session(tests, name=f"tests-{version}", python=version)


@nox.session
def latest(session: nox.Session) -> None:
    """Run pytest with the newest versions that pyproject.toml allows."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".", *group("test"))
    suite(session)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run pytest with the oldest versions that pyproject.toml allows."""
    session.install("-e", ".", *map(at_lower_bound, (*PYPROJECT["project"]["dependencies"], *group("test"))))
    suite(session)


def at_lower_bound(line: str) -> str:
    """A requirement whose version is its lower bound; any version where it has none."""
    requirement = Requirement(line)
    bounds = (bound.version for bound in requirement.specifier if bound.operator == ">=")
    requirement.specifier = SpecifierSet(",".join(f"=={version}" for version in bounds))
    return str(requirement)


def suite(session: nox.Session) -> None:
    """Run pytest on all cores."""
    # A file's tests share fixtures, so they stay on one worker; tests/conftest.py puts the slow files first.
    spread = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("pytest", *spread, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def learning(session: nox.Session) -> None:
    """Train new seeds and compare them with those whose results are kept."""
    session.install(*PINNED, "-e", ".", *group("test"))
    session.run("pytest", "-m", "learning", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def nodes(session: nox.Session) -> None:
    """Train on two nodes, which are network namespaces of this machine; needs root."""
    session.install(*PINNED, "-e", ".", *group("test"))
    session.run("pytest", "-m", "nodes", "tests/nodes", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def ray(session: nox.Session) -> None:
    """Run the tests of actors and sweeps on Ray, whose packages are large."""
    session.install(*PINNED, "-e", ".[sweep]", *group("test"))
    session.run("pytest", "-m", "ray", *session.posargs, env={"OMP_NUM_THREADS": "1"})
    session.run("pytest", "tests/cli/test_sweep_runs.py", "tests/cli/test_sweep_search_runs.py")


@nox.session
def simulators(session: nox.Session) -> None:
    """Run the tests of simulators in JAX, whose packages are large and take minutes to compile."""
    session.install(*PINNED, "-e", ".[brax,playground]", *group("test"))
    tests = (f"tests/envs/test_{name}.py" for name in ("simulated", "playground"))
    session.run("pytest", *tests, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*PINNED, *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, of the packages and of benchmarks/, which imports some of what the tests use."""
    session.install(*PINNED, "-e", ".", *group("types"), *group("test"))
    session.run("mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """Check that imports run downward only; reads the sources and runs none of them."""
    session.install(*PINNED, *group("imports"))
    session.run("lint-imports", env={"PYTHONPATH": "src:callbacks"})


@nox.session
def cli(session: nox.Session) -> None:
    """Parse every configuration that is shipped, and see a bad key refused."""
    session.install(*PINNED, "-e", ".", "optuna")  # which suggests the trials of a search
    files = sorted(Path("configs").rglob("*.yaml"))
    tasks = [file for file in files if file.parent.name not in ("methods", "sweeps")]
    for file in tasks:
        session.run("dqs-fit", "--config", str(file), "--print_config", silent=True)
    for file in Path("configs/methods").glob("*.yaml"):
        session.run("dqs-fit", "--config", str(tasks[0]), "--config", str(file), "--print_config", silent=True)
    for file in Path("configs/sweeps").glob("*.yaml"):
        session.run("dqs-sweep", str(file), "--dry-run", silent=True)
    session.run("dqs-fit", "--config", str(tasks[0]), "--model.no_such_key=1", success_codes=[2])


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; a broken link, a missing anchor or a page outside the navigation fails it."""
    session.install(*PINNED, "-e", ".", *group("docs"))
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # pyproject.toml holds mkdocs below 2
    session.run("mkdocs", "build", "--strict", "--site-dir", "site", *session.posargs, env=quiet)


@nox.session
def notebook(session: nox.Session) -> None:
    """Execute every cell of the tutorial, which trains for minutes; a cell that fails, fails the session."""
    session.install(*PINNED, "-e", ".", *group("notebook"))
    session.run("jupyter", "execute", "--timeout=-1", "docs/tutorial.ipynb")  # the outputs are not kept


@nox.session(venv_backend="none")
def docker(session: nox.Session) -> None:
    """Build the image of the Dockerfile and start the command in it, where a Docker daemon runs."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        session.skip("no Docker daemon runs here")
    session.run("docker", "build", "--tag", "dqs-lightning", ".", external=True)
    session.run("docker", "run", "--rm", "dqs-lightning", "--list", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Run every script of benchmarks/ that has --brief, to see that it works; published figures are of full runs."""
    session.install(*PINNED, "-e", ".[export]", *group("test"), *group("bench"))
    scripts = [path for path in sorted(Path("benchmarks").rglob("*.py")) if '"--brief"' in path.read_text()]
    for path in scripts:
        if path.parent.name != "faults":
            session.run("python", str(path), "--brief", env={"OMP_NUM_THREADS": "1"})
    for name in STUDIES:
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "benchmarks"}
        session.run("python", "-m", f"faults.{name}", "--brief", env=env)


FAULTS = ("kills", "signals", "resume", "nonfinite", "environments", "payloads")
STUDIES = ("kills", "signals", "resume", "nonfinite", "environments", "soak")
"""Those that have --brief."""


@nox.session
def faults(session: nox.Session) -> None:
    """Count what the guarantees promise under faults, about two hours; a study's name after -- runs that one alone."""
    session.install(*PINNED, "-e", ".", *group("test"))
    study(session, *(session.posargs or FAULTS))


@nox.session
def soak(session: nox.Session) -> None:
    """See that memory, files, threads and shared memory of 300,000 environment steps do not grow."""
    session.install(*PINNED, "-e", ".", *group("test"))
    study(session, "soak")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Count how 1,000 mutations of the shipped configurations and 1,000 misspellings are refused."""
    session.install(*PINNED, "-e", ".", *group("test"))
    study(session, "configurations")


def study(session: nox.Session, *names: str) -> None:
    """Run studies of benchmarks/faults, then put their counts into the docs; fails when a cell has not passed."""
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "benchmarks"}
    for name in names:  # all of them, also after one in which a cell has not passed
        session.run("python", "-m", f"faults.{name}", "--jobs", "2", env=quiet, success_codes=[0, 1])
    session.run("python", "-m", "faults.tables", env=quiet)


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and from it the wheel, and run the commands where only the wheel and its extras are installed."""
    session.install(*PINNED, *group("build"))
    place = Path(session.create_tmp()).resolve()
    dist, fresh, away = place / "dist", place / "fresh", place / "away"
    for old in (dist, away):
        shutil.rmtree(old, ignore_errors=True)
    away.mkdir()
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist))
    session.run("python", "-m", "venv", "--clear", str(fresh))
    constraints = str(Path("constraints.txt").resolve())
    wheel = next(dist.glob("*.whl"))
    session.chdir(away)  # from the sources
    packages = (f"{wheel}[export,report]", "-c", constraints)
    session.run(f"{fresh}/bin/python", "-m", "pip", "install", *packages, external=True)
    for line in (
        "dqs-fit --list",
        "python -m dqs_lightning --config walker --config methods/qsm --print_config",
        "dqs-fit --config cartpole --data.total_frames=3000 --data.init_random_frames=1000 "
        "--evaluate.every_frames=3000 --evaluate.episodes=2 --run_dir=run",
        "dqs-eval run --episodes 2",
        "dqs-report run --out report",
        "dqs-export run --out policy.onnx",
        "dqs-sweep sweeps/mixture --dry-run",
    ):
        command, *arguments = line.split()
        env = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        session.run(f"{fresh}/bin/{command}", *arguments, external=True, env=env, silent="print" in line)
