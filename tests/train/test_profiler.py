"""Profiles: synthetic traces of devices that are not here, a real one, and what a run does with them."""

import json

import jax
import jax.numpy as jnp
import pytest

from mmjax import cli
from mmjax.commands.train import parse_profile
from mmjax.core.config import ConfigError
from mmjax.program import trace, trace_text
from mmjax.program.op_kinds import instruction_kinds, kind_from_name
from mmjax.runs.timing import ActivityTimer
from mmjax.train import loop, profiler
from mmjax.train.profiler import Profiler
from support import tiny

MS = 1_000_000_000  # picoseconds


def space(*planes):
    """A ``ProfileData`` of planes: (name, {line: [(event, start ms, milliseconds, {stat: text})]})."""
    text = []
    for plane, lines in planes:
        events, stats, body = {}, {}, []
        for line, rows in lines.items():
            inner = []
            for name, start, length, more in rows:
                words = "".join(
                    f" stats {{ metadata_id: {stats.setdefault(key, len(stats) + 1)} str_value: {json.dumps(value)} }}"
                    for key, value in more.items()
                )
                inner.append(
                    f"events {{ metadata_id: {events.setdefault(name, len(events) + 1)} offset_ps: {round(start * MS)} "
                    f"duration_ps: {round(length * MS)}{words} }}"
                )
            body.append(f'lines {{ name: "{line}" timestamp_ns: 1000 {" ".join(inner)} }}')
        tables = [
            f"{table} {{ key: {i} value {{ id: {i} name: {json.dumps(name)} }} }}"
            for table, names in (("event_metadata", events), ("stat_metadata", stats))
            for name, i in names.items()
        ]
        text.append(f'planes {{ name: "{plane}" {" ".join(body + tables)} }}')
    return jax.profiler.ProfileData.from_text_proto("\n".join(text))


def kernel(name, op, start, length, module="jit_step"):
    return (name, start, length, {"hlo_op": op, "hlo_module": module})


def gpu(number, steps=3, length=10.0):
    """Steps of 10 ms: 4 ms of products, 2 ms of a fusion, 3 ms of a collective half of which is hidden."""
    compute, network, copies = [], [], []
    for i in range(steps):
        at = i * length
        compute += [
            kernel("nvjet_hsh_128x128", "custom-call.7", at, 4),
            kernel("loop_fusion", "loop_fusion.3", at + 4, 2),
        ]
        network.append(kernel("ncclDevKernel_AllReduce_Sum_bf16", "all-reduce-start.1", at + 4.5, 3))
        copies.append(("MemcpyH2D", at + 7.5, 0.5, {}))
    lines = {"Stream #7(Compute)": compute, "Stream #9(NCCL)": network, "Stream #11(MemcpyH2D)": copies, "Steps": []}
    return f"/device:GPU:{number}", lines


def test_a_gpus_streams_are_told_apart_and_add_up():
    found = trace.summarize(space(gpu(0), ("/host:CPU", {"python": [("step", 0, 30, {})]})), steps=3, module="jit_step")
    assert found.devices == 1
    # The last step has no next one: it ends with its last operation.
    assert found.step_seconds == pytest.approx((0.010, 0.010, 0.008))
    total = 28.0
    assert found.fractions == pytest.approx(
        {
            "matrix": 12 / total,
            "other": 6 / total,
            "collective": 4.5 / total,
            "copy": 1.5 / total,
            "control": 0,
            "elsewhere": 0,
        }
    )
    assert found.idle == pytest.approx(4 / total) and sum(found.fractions.values()) + found.idle == pytest.approx(1)
    assert found.busy_seconds["collective"] == pytest.approx(0.003)
    rows = {row.name: row for row in found.ops}
    assert (rows["custom-call.7"].seconds, rows["custom-call.7"].count) == (pytest.approx(0.004), 1)
    assert [row.name for row in found.ops][:2] == ["custom-call.7", "all-reduce-start.1"]


def test_devices_are_averaged_and_other_programs_set_apart():
    name, lines = gpu(1)
    lines["Stream #7(Compute)"].append(kernel("gemm", "dot.1", 9, 1, module="jit_encode_images"))
    found = trace.summarize(space(gpu(0), (name, lines)), steps=3, module="jit_step")
    assert found.devices == 2
    assert found.fractions["elsewhere"] == pytest.approx(1 / 56) and found.fractions["matrix"] == pytest.approx(24 / 56)
    assert any(row.name == "jit_encode_images: dot.1" and row.kind == "elsewhere" for row in found.ops)


def test_a_tpus_operations_belong_to_the_programs_that_run_above_them():
    ops, modules = [], []
    for i in range(2):
        at = 20.0 * i
        modules.append(("jit_step(1234)", at, 12, {}))
        ops += [
            ("%while.1 = (s32[]) while(%tuple.1), body=%body.1", at, 8, {}),
            (
                "%fusion.2 = bf16[8,8]{1,0} fusion(%p.1), kind=kOutput",
                at + 1,
                3,
                {"hlo_category": "convolution fusion"},
            ),
            (
                "%fusion.2 = bf16[8,8]{1,0} fusion(%p.1), kind=kOutput",
                at + 4,
                3,
                {"hlo_category": "convolution fusion"},
            ),
            ("%all-gather.5 = bf16[8,8]{1,0} all-gather(%p.1)", at + 8, 4, {"hlo_category": "all-gather"}),
        ]
    modules.append(("jit_encode(9)", 13, 4, {}))
    ops.append(("%fusion.2 = f32[] fusion()", 13, 4, {}))
    plane = {
        "XLA Modules": modules,
        "XLA Ops": ops,
        "Steps": [("0", 0, 20, {})],
        "Async XLA Ops": [("%x = copy-start()", 0, 40, {})],
    }
    sparse = {"XLA Ops": [("%gather.1 = f32[] gather()", 0, 1, {})]}
    found = trace.summarize(
        space(("/device:TPU:0", plane), ("/device:TPU:0 SparseCore 0", sparse)), steps=2, module="jit_step"
    )
    assert found.devices == 1
    assert found.step_seconds == pytest.approx((0.020, 0.012))
    assert found.fractions["matrix"] == pytest.approx(12 / 32) and found.fractions["collective"] == pytest.approx(
        8 / 32
    )
    assert found.fractions["control"] == pytest.approx(4 / 32) and found.fractions["elsewhere"] == pytest.approx(4 / 32)
    assert found.idle == pytest.approx(4 / 32)
    rows = {row.name: row for row in found.ops}
    assert rows["fusion.2"].count == 2 and "while.1" not in rows  # which lasts as long as what it runs


def test_the_compiled_program_says_what_a_name_hides():
    plane = space(
        ("/device:GPU:0", {"Stream #1": [kernel("fusion_5", "fusion.5", 0, 1), kernel("nccl", "gemm.1", 1, 1)]})
    )
    found = trace.summarize(plane, steps=1, kinds={"fusion.5": "matrix", "gemm.1": "other"}, module="jit_step")
    assert found.fractions["matrix"] == found.fractions["other"] == pytest.approx(0.5)


def test_where_events_were_lost_the_steps_are_taken_as_equally_long():
    plane = space(("/device:GPU:0", {"Stream #1": [kernel("a", "a", 0, 1), kernel("b", "b", 8, 1)]}))
    assert trace.summarize(plane, steps=3).step_seconds == pytest.approx((0.003, 0.003, 0.003))


@pytest.mark.parametrize("planes", [(), (("/host:CPU", {"python": [("f", 0, 1, {})]}),), (("/device:GPU:0", {}),)])
def test_a_trace_without_operations_is_refused(planes):
    with pytest.raises(trace.EmptyTrace, match="no device operations"):
        trace.summarize(space(*planes), steps=1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_AllGather_RING_LL", "collective"), ("all_reduce_fusion", "collective"),
        ("reduce-scatter.3", "collective"), ("send.1", "collective"), ("sm90_xmma_gemm_bf16", "matrix"),
        ("nvjet_tst_192x192", "matrix"), ("cudnn_generated_fort_native_sdpa_fmha", "matrix"), ("dot.5", "matrix"),
        ("convert_fusion", "other"), ("anecdote", "other"), ("input_reduce_fusion", "other"), ("MemcpyD2D", "copy"),
        ("copy.3", "copy"), ("while.2", "control"),
    ],
)  # fmt: skip
def test_names_let_guess(name, kind):
    assert kind_from_name(name) == kind


@pytest.fixture(scope="module")
def compiled():
    """A program with a product, a loop, a transpose and a sum over devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*p)) for p in (("data",), ()))

    def work(x, w):
        y = jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, length=3)[0]
        return y, jnp.sum(y * y)

    x, w = jax.device_put(jnp.ones((64, 64)), rows), jax.device_put(jnp.ones((64, 64)), whole)
    return jax.jit(work).lower(x, w).compile(), x, w


def test_a_compiled_programs_instructions_have_kinds(compiled):
    kinds, module = instruction_kinds(compiled[0])
    assert module == "jit_work"
    assert {"matrix", "control", "collective", "other"} <= set(kinds.values())
    assert all(kind == "collective" for name, kind in kinds.items() if name.startswith("all-reduce"))


def profiled(workdir, compiled, steps, *, begin=0, until=9):
    """A run of the small program that ends after ``until`` steps."""
    program, x, w = compiled
    profiler = Profiler(steps, workdir, begin=begin, program=program, timer=ActivityTimer())
    ended = []
    for step in range(begin + 1, until + 1):
        profiler.before_step(step, x)
        before = profiler._tracing
        x, total = program(x, w)
        profiler.after_step(step, x, total)
        ended.append(before and not profiler._tracing)
    profiler.close()
    profiler.close()
    return ended


def test_a_profile_of_steps_here(compiled, tmp_path, messages):
    ended = profiled(tmp_path, compiled, (3, 6))
    assert ended == [False] * 5 + [True] + [False] * 3
    folder = tmp_path / "profile" / "steps-3-6"
    summary = (folder / "summary.txt").read_text()
    assert "steps 3-6 on 8 x cpu" in summary and "(4 steps)" in summary and "8 device(s)" in summary
    for words in ("matrix products", "collectives", "idle", "all-reduce", "count"):
        assert words in summary, words
    assert len(summary.splitlines()) < 45 and max(map(len, summary.splitlines()[:-1])) <= 100
    (path,) = folder.rglob("*.xplane.pb")
    found = trace.summarize(jax.profiler.ProfileData.from_file(str(path)), steps=4, module="jit_work")
    rows = {row.name: row.count for row in found.ops}
    assert (
        len(found.step_seconds) == 4 and 1 in rows.values() and 3 in rows.values()
    )  # the loop's body runs three times
    assert sum(found.fractions.values()) + found.idle == pytest.approx(1)
    assert len(messages) == 1 and "summary.txt" in messages[-1] and "a step took" in messages[-1]


def test_a_run_that_ends_within_the_steps_or_begins_after_them_says_so(compiled, tmp_path, messages):
    profiled(tmp_path, compiled, (7, 12))
    assert (
        "7-9 of 7-12" in messages[0]
        and "(3 steps)" in (tmp_path / "profile" / "steps-7-12" / "summary.txt").read_text()
    )
    messages.clear()
    ended = profiled(tmp_path / "late", compiled, (2, 4), begin=4)
    assert messages == ["nothing to profile: the run goes on from step 4, beyond steps 2-4"] and not any(ended)
    assert not (tmp_path / "late").exists()
    messages.clear()
    profiled(tmp_path / "within", compiled, (2, 6), begin=4)
    assert (
        "steps 5-6 alone" in messages[0]
        and "(2 steps)" in (tmp_path / "within/profile/steps-2-6/summary.txt").read_text()
    )
    messages.clear()
    profiled(tmp_path / "before", compiled, (20, 21))
    assert not messages


def test_a_profile_made_again_replaces_the_first(compiled, tmp_path, messages):
    profiled(tmp_path, compiled, (3, 3), until=4)
    (path,) = tmp_path.rglob("*.xplane.pb")
    path.rename(path.with_name("another-machine.xplane.pb"))
    profiled(tmp_path, compiled, (3, 3), until=4)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1 and "a step took" in messages[-1]


def test_a_profiler_that_fails_is_said_and_the_run_goes_on(compiled, tmp_path, monkeypatch, messages):
    def broken(*_, **__):
        raise RuntimeError("no permission for counters")

    with monkeypatch.context() as patch:
        patch.setattr(profiler.jax.profiler, "start_trace", broken)
        ended = profiled(tmp_path, compiled, (2, 3))
    assert messages == ["profiling is not possible here: no permission for counters"] and len(ended) == 9
    messages.clear()
    monkeypatch.setattr(profiler.trace, "summarize", broken)
    profiled(tmp_path, compiled, (2, 3))
    assert len(messages) == 1 and "could not be summed up: RuntimeError: no permission" in messages[-1]


def test_the_page_has_the_dearest_operations_and_fits():
    found = trace.summarize(space(gpu(0)), steps=3, module="jit_step")
    many = [trace.OpTime(name="x" * 200, kind="other", seconds=1e-3, count=1.0)] * 40
    shown = trace.Summary(**{**vars(found), "ops": tuple(many)})
    host = ["evaluation 3.2s", "saving checkpoints 0.5s"]
    page = trace_text.format_summary(shown, title="steps 1-3 on 1 x GPU", path="trace.pb", host=host)
    assert "in between      evaluation 3.2s, saving checkpoints 0.5s\n" in page
    assert "in between" not in trace_text.format_summary(shown, title="", path="")
    assert page.count("x…") == 1 * trace_text.MAX_OPS and "and 25 more" in page
    assert max(map(len, page.splitlines())) <= 100
    assert trace_text.format_line(found).startswith("a step took 9.3 ms: matrix products and attention 43%")


@pytest.mark.parametrize(
    ("text", "steps"), [("steps:10-15", (10, 15)), ("steps:7", (7, 7)), ("steps:1-1", (1, 1)), (None, None)]
)
def test_which_steps(text, steps):
    assert parse_profile(text) == steps


@pytest.mark.parametrize(
    "text",
    ["", "10-15", "steps", "steps:", "steps:a-b", "steps:5-3", "steps:0-3", "steps:-1-3", "steps:1-2-3", "steps:٣",
     "epochs:1"],
)  # fmt: skip
def test_a_wrong_form_is_one_line_before_anything_else(text, capsys, tmp_path):
    with pytest.raises(ConfigError, match=f"^--profile={text}: .*steps:10-15"):
        parse_profile(text)
    assert cli.main(["train", "--config=none.py", f"--workdir={tmp_path / 'run'}", f"--profile={text}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_steps_beyond_the_end_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"--profile=steps:5-9: the run has only 6 steps"):
        loop.train(tiny.experiment(), workdir=tmp_path / "run", profile=(5, 9))
    assert not (tmp_path / "run").exists()
