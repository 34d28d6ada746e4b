"""Plan training on a TPU slice, without one.

Compiles the step that training would run for a slice of TPU chips (AOT, no TPU attached) and prints its memory
against theirs, its arithmetic and collectives, and the step time that follows from the chips' published figures.
Needs libtpu (pip install 'mmjax[aot]') and no data. The status is 1 where the step does not fit.
"""

from __future__ import annotations

import argparse

from mmjax.commands.common import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:AxB", help="the slice: v5e:16x16, v6e:4x4, v4:2x2x2, v5p:4x4x8, …"
    )
    parser.add_argument("--fit", choices=["batch"], help="find the largest global batch that fits; compiles it often")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the plan; status 1: the step does not fit."""
    import jax

    from mmjax.commands.common.jax_setup import use_cpu

    use_cpu()
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot hold programs for devices that are not here
    from mmjax.config_file import load_config
    from mmjax.experiment import Experiment
    from mmjax.planning import plan, plan_text
    from mmjax.program import topology

    experiment = Experiment.from_dict(load_config(args.config, args.overrides))
    make_plan = plan.fit_batch if args.fit == "batch" else plan.make_plan
    result = make_plan(experiment, topology.make_topology(args.topology))
    options.print_result(result, plan_text.format_plan, as_json=args.json)
    return 0 if result["fits"] else 1
