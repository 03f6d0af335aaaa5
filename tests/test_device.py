"""What is said of the machine is what the libraries themselves say."""

import json
import os

import pytest
import sklearn
import torch

from oodlib import __version__
from oodlib.device import default_device, describe_machine, has_fast_bfloat16


def test_default_device_is_the_gpu_where_there_is_one(monkeypatch):
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert default_device() == torch.device(kind)


@pytest.mark.parametrize("answer", [True, False])
def test_bfloat16_on_a_cpu_follows_its_instructions(monkeypatch, answer):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer, raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is answer


def test_bfloat16_is_off_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is False


def test_machine_is_described_in_json_types():
    about = describe_machine(torch.device("cpu"))
    assert about["device"] == "cpu"
    assert about["cores"] == os.cpu_count()
    assert about["threads"] == torch.get_num_threads()
    assert (about["oodlib"], about["torch"], about["scikit-learn"]) == (
        __version__,
        torch.__version__,
        sklearn.__version__,
    )
    assert about["processor"]
    assert json.loads(json.dumps(about)) == about


def test_processor_has_a_name_where_there_is_no_proc(monkeypatch):
    def missing(*_):
        raise OSError("no /proc/cpuinfo")

    monkeypatch.setattr("builtins.open", missing)
    from oodlib.device import _processor_name

    assert _processor_name()
