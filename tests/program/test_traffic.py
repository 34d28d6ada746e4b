"""Traffic of a compiled program with the main memory, and how often its loops run."""

import pytest

from mmjax.program import traffic
from mmjax.program.hlo import Module
from support.hlo_texts import TPU_TEXT


@pytest.mark.parametrize(("next_", "trips"), [("%k.2", 8), ("%k.3", 4), ("%k.4", 3), ("%k", 8), ("%k.5", 8)])
def test_a_loop_that_takes_several_parts_at_a_time_runs_as_much_less_often(next_, trips):
    """By one, by two in one or two additions (three in two), and where what it adds is not seen."""
    text = f"""%condition (c: (s32[], f32[4])) -> pred[] {{
  %c = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

%body (c: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %c.1 = (s32[], f32[4]) parameter(0)
  %k = s32[] get-tuple-element(%c.1), index=0
  %one = s32[] constant(1)
  %two = s32[] constant(2)
  %k.2 = s32[] add(%k, %one)
  %k.3 = s32[] add(%k.2, %one)
  %half = s32[] copy(%k.2)
  %k.4 = s32[] add(%two, %half)
  %k.5 = s32[] add(%k, %k)
  %x = f32[4] get-tuple-element(%c.1), index=1
  ROOT %next = (s32[], f32[4]) tuple({next_}, %x)
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x.1 = f32[4] parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[4]) tuple(%zero, %x.1)
  %last = (s32[], f32[4]) while(%first), condition=%condition, body=%body
  ROOT %result = f32[4] get-tuple-element(%last), index=1
}}
"""
    assert [one.times for one in Module(text).executed() if one.instruction.name.strip("%") == "x"] == [trips]


def test_a_loop_moves_slices_and_what_is_on_the_chip_costs_no_memory_traffic():
    module = Module(TPU_TEXT)
    assert module.unknown_loops == []
    before, _, rest = TPU_TEXT.partition("%body")
    in_loop = [e for e in module.executed() if e.times == 12]
    assert in_loop
    with_loop = traffic.memory_bytes(module)
    shorter = Module(before.replace("constant(12)", "constant(2)") + "%body" + rest)
    # A pass reads one slice, writes it, and reads the counter twice; the rest of the stack stays where it is.
    assert (with_loop - traffic.memory_bytes(shorter)) / 10 == 2 * 64 * 64 * 4 + 2 * 4
