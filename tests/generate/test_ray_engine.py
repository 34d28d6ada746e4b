"""Ray's engine makes the files of the local one."""

import sys

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.generate.engines import local
from support import generating

MODELS = {"captioner": {"name": "scenes", "error": 0.2}, "scorer": {"name": "scenes"}}
STAGES = (
    ("caption", {"n": 2}),
    ("score", {}),
    ("caption_mix", {"fraction": 0.5}),
    ("caption", {"source": "detail"}),
    ("score", {}),
)


def test_an_engine_that_is_not_installed_is_named(tmp_path, monkeypatch):
    from mmjax.generate.engines import ray as engine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--engine=ray.*mmjax\[ray\]"):
        engine.run(None, [0], print)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_both_engines_make_the_same_bytes_and_errors_come_back_as_one_line(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")
    pytest.importorskip("ray.data")
    from mmjax.generate.engines import ray as engine

    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    try:
        outputs = {}
        for name, module in (("local", local), ("ray", engine)):
            job = generating.make_job(tmp_path / name, STAGES, MODELS)
            counts = []

            def counted(phase, numbers, progress, module=module, counts=counts):
                module.run(phase, numbers, lambda done: (counts.append(done), progress(done)))

            records = generating.run(job, engine=counted)
            assert sum(counts) == 2 * 24  # of two phases
            outputs[name] = sorted(records, key=lambda record: int(record.id)), generating.content(tmp_path / name)
        assert [r.to_bytes() for r in outputs["local"][0]] == [r.to_bytes() for r in outputs["ray"][0]]
        assert outputs["local"][1] == outputs["ray"][1]
        assert np.mean([record.keep for record in outputs["ray"][0]]) > 0

        broken = {**MODELS, "captioner": {"name": "openai", "url": "http://127.0.0.1:9", "model": "m", "retries": 0}}
        with pytest.raises(ConfigError, match="start the server") as caught:
            generating.run(generating.make_job(tmp_path / "broken", STAGES, broken), engine=engine.run)
        assert "\n" not in str(caught.value)
    finally:
        ray.shutdown()
