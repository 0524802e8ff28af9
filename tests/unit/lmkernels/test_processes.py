"""What needs a fresh process: Triton's interpreter, and what an import leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

LIGER = """
import torch
from lmkernels import choose
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                     num_attention_heads=4, num_key_value_heads=2)
tokens = torch.randint(128, (2, 16), generator=torch.Generator().manual_seed(0))

def run():
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]

expected_loss, expected = run()
rope = modeling_llama.apply_rotary_pos_emb
choose("fp32", "liger", torch.device("cpu"), "llama").before_model()
assert modeling_llama.apply_rotary_pos_emb is not rope
loss, gradients = run()
torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
for found, wanted in zip(gradients, expected, strict=True):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
print("same")
"""

PROBE = """
import importlib.util
spec = importlib.util.find_spec("kernels")
print("regular" if spec is not None and spec.origin is not None else "free")
from transformers.utils import is_kernels_available
print(is_kernels_available())
import transformers.models.llama.modeling_llama
"""


def python(code: str, *paths: Path, **environment: str) -> list[str]:
    """Run code in the repository's root, as jobs do; return the lines it printed."""
    path = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", *paths]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_liger_in_the_interpreter_equals_torch() -> None:
    assert python(LIGER, TRITON_INTERPRET="1") == ["same"]


def test_importing_lmkernels_leaves_heavy_libraries_out() -> None:
    code = (
        "import sys, lmkernels; print([name for name in ('transformers', 'liger_kernel', 'torchao', 'triton') "
        "if name in sys.modules])"
    )
    assert python(code) == ["[]"]


def test_the_folder_kernels_does_not_pose_as_the_distribution() -> None:
    assert python(PROBE) == ["free", "False"]


def test_the_distribution_wins_over_the_folder(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.0.1'\n")
    code = "import importlib.util, lmkernels; print(importlib.util.find_spec('kernels').origin, lmkernels.__file__)"
    assert python(code, tmp_path) == [str(package / "__init__.py"), str(ROOT / "kernels" / "lmkernels" / "__init__.py")]
