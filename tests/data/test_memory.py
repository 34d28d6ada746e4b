"""A long run's memory: reading goes on and on, and takes no more than at its start."""

import json
import subprocess
import sys
import textwrap

import pytest

from support import archives
from support.pictures import encoded, photograph

READS = 50_000
PROGRAM = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    from mmjax.data.transform_chain import TransformChain
    from mmjax.data.pipeline import Batches
    from mmjax.data.sources.webdataset import Source

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096

    if __name__ == "__main__":
        source = Source("train", path=sys.argv[1])
        chain = TransformChain((("random_resized_crop", {}), ("flip", {})), image_size=64, modalities=("image",))
        tokens = lambda texts: np.zeros((len(texts), 8), np.int32)
        stream = Batches(source, tokens, batch_size=100, seed=0, chain=chain).stream(threads=2)
        sizes = []
        for step in range(int(sys.argv[2]) // 100):
            next(stream)
            if step % 50 == 49:
                sizes.append(resident())
        stream.close()
        print(json.dumps(sizes))
    """
)


@pytest.mark.slow
def test_memory_is_flat_over_fifty_thousand_reads(tmp_path, monkeypatch):
    examples = [(f"{i:05d}", encoded(photograph(400, 500, seed=i % 7), quality=85), [str(i)]) for i in range(400)]
    archives.write_webdataset(tmp_path / "s", examples, shards=4)
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", str(tmp_path / "s" / "*.tar"), str(READS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert len(sizes) == READS // 5000
    early, late = max(sizes[:2]), max(sizes[-2:])
    assert late < 1.02 * early, sizes
