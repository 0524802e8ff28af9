"""The whole smoke chain: built, gated, reused, walked back through MLflow."""

import json
import re
from pathlib import Path

from pipeline.recipes.loader import load_recipe
from tests.e2e.conftest import Chain
from training.store.store import Store


def test_every_asset_is_promoted_by_gates_that_measured_it(chain: Chain) -> None:
    status = chain.status()
    assert list(status) == list(load_recipe("smoke").graph)
    for asset, found in status.items():
        assert found["promoted"] and found["fresh"], (asset, found["why"])
        assert found["gates"] and all(gate["passed"] and gate["value"] is not None for gate in found["gates"]), asset
        assert found["mlflow_run_id"], asset
        assert Path(found["path"], "manifest.json").is_file()
        for name, digest in found["inputs"].items():
            assert status[name]["digest"] == digest, f"{asset} was made from another {name}"


def test_one_asset_alone_reuses_what_is_promoted(chain: Chain) -> None:
    before = chain.status()
    done = chain.command("dagster", "asset", "materialize", "--select", "smoke/sft_model")
    assert done.returncode == 0, done.stdout[-3000:]
    after = chain.status()
    assert after["sft_model"]["reused"]
    assert {name: found["version"] for name, found in after.items()} == {
        name: found["version"] for name, found in before.items()
    }


def test_dg_launch_does_the_same(chain: Chain) -> None:
    done = chain.command("dg", "launch", "--assets", "smoke/tokenizer")
    assert done.returncode == 0, done.stdout[-3000:]
    assert chain.status()["tokenizer"]["reused"]


def test_preview_shows_what_is_learned(chain: Chain) -> None:
    marks = {
        "instruction_data": ("[[", "<|user|>"),
        "adapter_data": ("<|end|>]]", "given, not learned"),
        "preference_data": ("chosen", "rejected"),
        "packed_shards": ("a document begins", "tokens are learned"),
    }
    for asset, expected in marks.items():
        done = chain.command("gatehouse", "preview", asset, "--rows", "2")
        assert done.returncode == 0, done.stdout
        assert all(mark in done.stdout for mark in expected), done.stdout

    page = chain.home / "rows.html"
    done = chain.command("gatehouse", "preview", "smoke", "instruction_data", "--packed", "--html", str(page))
    assert done.returncode == 0 and str(page) in done.stdout.replace("\n", ""), done.stdout
    assert 'class="learned"' in page.read_text()

    refused = chain.command("gatehouse", "preview", "smoke", "base_model")
    assert refused.returncode == 2
    assert "base_model has no rows that a model learns from" in refused.stdout
    for options in (("packed_shards",), ("instruction_data", "--packed")):
        refused = chain.command("gatehouse", "preview", *options, "--find", "os")
        assert refused.returncode == 2 and "a packed row holds many texts" in refused.stdout, refused.stdout


def test_the_lineage_is_in_mlflow_alone(chain: Chain) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{chain.home}/mlflow/mlflow.db")
    status = chain.status()
    todo, seen = ["lora_model"], {}
    while todo:
        asset = todo.pop()
        run = client.get_run(status[asset]["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["dagster_run"]
        seen[asset] = {used.dataset.name: used.dataset.digest for used in run.inputs.dataset_inputs}
        note = run.data.tags["mlflow.note.content"]
        for name, digest in seen[asset].items():
            assert status[name]["digest"].startswith(digest), f"{asset} <- {name}"
            page = rf"\[{name}\]\(http\S*/runs/{status[name]['mlflow_run_id']}\?\S*\)"
            assert re.search(page, note), "a link to click"
        todo += [name for name in seen[asset] if name not in seen]
    assert set(seen) == set(status), "the way from the adapter back to the raw corpus leads through every asset"
    for asset in ("base_model", "sft_model", "dpo_model", "lora_model"):
        champion = client.get_model_version_by_alias(f"smoke.{asset}", "champion")
        assert champion.run_id == status[asset]["mlflow_run_id"]
        history = client.get_metric_history(champion.run_id, "curves/loss")
        assert len(history) >= 2 and len({(point.step, point.timestamp) for point in history}) == len(history)


def test_the_final_model_is_a_plain_transformers_folder(chain: Chain) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(chain.status()["lora_model"]["path"], "model")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What does `os.getcwd` do?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert output.shape[1] > ids["input_ids"].shape[1]


def test_a_changed_threshold_judges_again_and_trains_nothing(chain: Chain) -> None:
    before = chain.status()["base_model"]
    done = chain.command("gatehouse", "run", "--select", "base_model", "--set", "gates.base_model.0.threshold=99")
    assert done.returncode == 1, done.stdout
    assert "loss_drop" in done.stdout and ">= 99" in done.stdout
    refused = chain.status()["base_model"]
    assert not refused["promoted"] and refused["version"] == before["version"]

    alone = chain.command("dagster", "asset", "materialize", "--select", "smoke/sft_model")
    assert alone.returncode != 0
    assert "base_model" in alone.stdout and "gate refused it" in alone.stdout

    again = chain.command("gatehouse", "run", "--select", "base_model")
    assert again.returncode == 0, again.stdout
    assert chain.status()["base_model"]["promoted"]
    store = Store(str(chain.home / "store"), "smoke")
    assert store.versions("base_model") == [before["version"]], "judging must not train"


def test_the_job_refuses_an_unpromoted_input_by_itself(chain: Chain) -> None:
    job = next((chain.home / "work" / "smoke" / "sft_model").glob("*/job.json"))
    store = Store(str(chain.home / "store"), "smoke")
    pointer = store.promotion("base_model")
    assert pointer is not None
    store.withdraw("base_model")
    try:
        done = chain.command("python", "-m", "training.run", str(job))
        assert done.returncode == 2, done.stdout
        assert "base_model" in done.stdout and "not promoted" in done.stdout
        assert "Traceback" not in done.stdout
    finally:
        store.promote(pointer)


def test_a_swapped_weight_file_is_refused(chain: Chain, tmp_path: Path) -> None:
    weights = Path(chain.status()["base_model"]["path"], "model", "model.safetensors")
    planned = json.loads(next((chain.home / "work" / "smoke" / "sft_model").glob("*/job.json")).read_text())
    pointer = Store(str(chain.home / "store"), "smoke").promotion("base_model")
    assert pointer is not None
    planned["inputs"]["base_model"]["certificate"] = pointer.certificate_digest  # it may have been judged again since
    job = tmp_path / "job.json"
    job.write_text(json.dumps(planned))
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        done = chain.command("python", "-m", "training.run", str(job))
        assert done.returncode == 2, done.stdout
        assert "model.safetensors has changed" in done.stdout
    finally:
        weights.write_bytes(original)


def test_status_says_why_something_is_stale(chain: Chain) -> None:
    done = chain.command("gatehouse", "plan", "--set", "sft_model.steps=21", COLUMNS="200")
    assert done.returncode == 0
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("│")}
    assert "reuse" in lines["base_model"]
    assert "changed: recipe sft_model.steps" in lines["sft_model"]
    assert "upstream is not fresh: sft_model" in lines["dpo_model"]


def test_two_builders_of_one_asset_are_not_let_in(chain: Chain) -> None:
    from pipeline.jobs.locks import building

    with building(chain.home / "work", "smoke", "tokenizer", "run 12345678"):
        done = chain.command("gatehouse", "run", "--select", "tokenizer", "--force")
    assert done.returncode == 2, done.stdout
    assert "is being built by run 12345678" in " ".join(done.stdout.split())


def test_events_are_few_in_dagster_and_whole_in_the_attempt(chain: Chain) -> None:
    store = Store(str(chain.home / "store"), "smoke")
    pointer = store.promotion("base_model")
    assert pointer is not None
    identity = store.manifest("base_model", pointer.version).identity
    attempt = next((chain.home / "work" / "smoke" / "base_model").glob(f"{identity[:16]}/events.jsonl"))
    kinds = [json.loads(line)["kind"] for line in attempt.read_text().splitlines()]
    assert kinds.count("metrics") >= 5
    left = {path.name for path in attempt.parent.iterdir() if not path.name.startswith("tracking-")}
    assert left == {"events.jsonl", "job.json", "output.log", "result.json"}
