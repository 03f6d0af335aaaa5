"""Device: what is said of the machine is what the libraries themselves say."""

import json
import os

import pytest
import sklearn
import torch

from oodlib import __version__
from oodlib.device import default_device, describe_machine, has_fast_bfloat16


def test_default_device_is_the_gpu_where_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert default_device() == torch.device(kind)


@pytest.mark.parametrize(("capability", "answer"), [("AVX512", True), ("AVX512", False), ("AVX2", True)])
def test_bfloat16_on_a_cpu_follows_its_instructions(monkeypatch, capability, answer):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer, raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is (answer and capability == "AVX512")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # where torch cannot tell
    assert has_fast_bfloat16(torch.device("cpu")) is False


def test_machine_is_described_in_json_types(monkeypatch):
    about = describe_machine(torch.device("cpu"))
    assert (about["device"], about["cores"], about["threads"]) == ("cpu", os.cpu_count(), torch.get_num_threads())
    versions = __version__, torch.__version__, sklearn.__version__
    assert (about["oodlib"], about["torch"], about["scikit-learn"]) == versions
    assert json.loads(json.dumps(about)) == about
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(OSError("no /proc/cpuinfo")))
    assert describe_machine(torch.device("cpu"))["processor"]
