"""Agents on a local server that speaks the Hub's protocol: upload, download, revisions, and what is refused."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import small
from hub_server import TOKEN, Hub
from payloads import FORMS, MODULE, SOURCE, Form, ran

from dqs_lightning.agents import DQS, SAC, Agent, load_agent
from dqs_lightning.checkpoint.archive import CheckpointError, safe_load
from dqs_lightning.cli import evaluate
from dqs_lightning.cli.export import command as export
from dqs_lightning.sharing import hub
from dqs_lightning.sharing.hub import HubError

pytest.importorskip("huggingface_hub")


def forget_modules() -> None:
    """Removes `huggingface_hub`, which reads its environment variables when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    server = Hub()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_ENDPOINT", server.endpoint)
        patched.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        patched.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            patched.delenv(name, raising=False)
        forget_modules()
        yield server
        forget_modules()
    server.close()


def same(one: Agent, other: Agent) -> bool:
    observation = torch.ones(2, one.observation_dim)
    return torch.equal(one.eval().act(observation, True), other.eval().act(observation, True))


def refusal(address: str) -> str:
    with pytest.raises(HubError) as caught:
        load_agent(address)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(address[:20])
    return message


def test_an_uploaded_agent_is_the_loaded_one(
    server: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = load_agent(run)
    address = agent.push_to_hub("me/cartpole", token=TOKEN, private=True)
    files = server.files("me/cartpole")
    assert files.keys() == {"agent.ckpt", "README.md", "config.yaml", "scores.jsonl", "replay.mp4"}
    assert address == f"{server.endpoint}/me/cartpole/commit/{server.branches['me/cartpole']['main']}"
    assert server.private == {"me/cartpole"}
    assert 'load_agent("hf://me/cartpole")' in files["README.md"].decode()
    found = load_agent("hf://me/cartpole")
    assert isinstance(found, DQS) and same(found, agent) and found.env_frames == 480
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["hf://me/cartpole", "--episodes=2", "--max_steps=2"]) == 0
    assert "cartpole-swingup  DQS at 480 frames  return " in capsys.readouterr().out
    assert evaluate.main(["hf://me/cartpole", "--video"]) == 2
    assert "--video: needs a run directory to write to" in capsys.readouterr().err
    assert export.main(["hf://me/cartpole", "--out=policy.pt2"]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"policy.pt2", "README.md"}


def test_a_revision_is_pinned(server: Hub) -> None:
    agents = [SAC(3, 2, **small((8,))) for _ in range(3)]
    first = agents[0].push_to_hub("me/versions", token=TOKEN).rpartition("/")[2]
    agents[1].push_to_hub("me/versions", token=TOKEN)
    agents[2].push_to_hub("me/versions", revision="next/one", token=TOKEN)
    addresses = (f"hf://me/versions@{first}", "hf://me/versions", "hf://me/versions@next/one")
    for address, agent in zip(addresses, agents, strict=True):
        assert same(load_agent(address), agent)
    assert "hf://me/versions@next/one" in server.files("me/versions", "next/one")["README.md"].decode()
    changed = SAC.load_from_checkpoint(addresses[0], tau=0.5)
    assert changed.tau == 0.5 and same(changed, agents[0])


def test_the_example_of_the_python_page_runs(server: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    (block,) = re.findall(r"^```{ .python }\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    values = {"agent": load_agent(run), "load_agent": load_agent}
    for line in block.splitlines():
        exec(line, values)
        server.branches["owner/walker"]["v1"] = server.branches["owner/walker"]["main"]
    assert same(values["same"], values["agent"]) and same(values["pinned"], values["agent"])


@pytest.mark.parametrize("address", ["hf://", "hf://me", "hf://me/a/b", "hf://me/a@", "hf://me/a b", "hf://me/a@b@c"])
def test_a_wrong_address_is_refused(server: Hub, address: str) -> None:
    assert refusal(address).endswith("must be hf://owner/name or hf://owner/name@revision")


def test_what_the_hub_lacks_is_named(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.commit("me/empty", {"README.md": b"nothing"})
    assert refusal("hf://me/nowhere").startswith("hf://me/nowhere: no such repository, or a private one")
    assert refusal("hf://me/empty@v9") == "hf://me/empty@v9: the repository has no such revision"
    assert refusal("hf://me/empty").startswith("hf://me/empty: has no agent.ckpt")
    assert "HFValidationError" in refusal("hf://me/a--b")
    assert evaluate.main(["hf://me/nowhere"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("dqs-eval: hf://me/nowhere: no such repository") and line.count("\n") == 1


def test_without_a_network_the_cache_is_used(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    agent = SAC(3, 2, **small((8,)))
    for name in ("me/seen", "me/unseen"):
        agent.push_to_hub(name, token=TOKEN)
    load_agent("hf://me/seen")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(load_agent("hf://me/seen"), agent)
    assert refusal("hf://me/unseen").endswith("cannot be reached, and no copy is in the cache")
    with pytest.raises(HubError, match=r"^hf://me/seen: OfflineModeIsEnabled: "):
        agent.push_to_hub("me/seen", token=TOKEN)


def test_a_server_that_is_gone_is_one_line(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Hub()
    gone.close()
    monkeypatch.setenv("HF_ENDPOINT", gone.endpoint)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    forget_modules()
    try:
        assert refusal("hf://me/unheard").endswith(f"{gone.endpoint} cannot be reached, and no copy is in the cache")
        with pytest.raises(HubError, match=r"^hf://me/mine: "):
            SAC(3, 2, **small((8,))).push_to_hub("me/mine", token=TOKEN)
    finally:
        forget_modules()


def test_an_upload_that_is_not_allowed_is_refused(server: Hub) -> None:
    agent = SAC(3, 2, **small((8,)))
    for token in ("hf_of_another", None):
        with pytest.raises(HubError) as caught:
            agent.push_to_hub("me/forbidden", token=token)
        assert str(caught.value) == (
            "hf://me/forbidden: refused with status 401 (Invalid credentials in Authorization header); is the token "
            "right? hf auth login saves one"
        )
    for name in ("forbidden", "me/a/b", "me/a b", "", "me/a--b"):
        with pytest.raises(HubError, match=r"^repository=.*: (must be owner/name|HFValidationError)"):
            agent.push_to_hub(name, token=TOKEN)
    assert "me/forbidden" not in server.commits


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, server: Hub) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert refusal("hf://me/a") == 'hf://me/a: needs huggingface_hub; run pip install "dqs-lightning[hub]"'
    with pytest.raises(
        HubError, match=r'repository=me/a: needs huggingface_hub; run pip install "dqs-lightning\[hub\]"'
    ):
        SAC(3, 2, **small((8,))).push_to_hub("me/a")


@pytest.mark.parametrize("form", [form for form in FORMS if form.is_file and form.live], ids=lambda form: form.name)
def test_no_file_of_the_hub_runs_code(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form) -> None:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    content = form.make(tmp_path)
    server.commit("me/payload", {"agent.ckpt": content})
    with pytest.raises(CheckpointError, match=r"agent\.ckpt: "):
        load_agent("hf://me/payload")
    assert evaluate.main(["hf://me/payload"]) == 2
    assert not ran(tmp_path)


def test_a_class_that_an_agent_names_is_not_imported(
    server: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    content = safe_load(run / "checkpoints" / "last.ckpt")
    content["hyper_parameters"]["sampler"] = {"class_path": f"{MODULE}.X", "init_args": {}}
    torch.save(content, tmp_path / "a.ckpt")
    server.commit("me/named", {"agent.ckpt": (tmp_path / "a.ckpt").read_bytes()})
    with pytest.raises(CheckpointError, match=f"names {MODULE}.X, which is neither imported nor of a trusted package"):
        load_agent("hf://me/named")
    assert not ran(tmp_path)
