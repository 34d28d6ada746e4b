"""Plan training on TPUs or GPUs, without one.

Compiles the step that training would run for a slice of TPU chips or for GPUs (AOT, none attached) and prints its
memory against theirs, its arithmetic, kernels and collectives, and the step time that follows from their published
figures. Needs no data, but a compiler: libtpu (pip install 'mmjax[aot]') or JAX's CUDA plugin (pip install
'mmjax[aot-gpu]'). The status is 1 where the step does not fit.
"""

from __future__ import annotations

import argparse

from mmjax.commands.common import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:AxB",
        help="TPUs as a slice: v5e:16x16, v6e:4x4, v4:2x2x2, v5p:4x4x8, …; GPUs, or machines x GPUs: a100:8, h100:1, "
        "h100:2x8, h200:8, b200:8",
    )
    parser.add_argument("--fit", choices=["batch"], help="find the largest global batch that fits; compiles it often")
    parser.add_argument(
        "--explain", action="store_true", help="list the dearest kernels with the lines of the source they come from"
    )
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
    from mmjax.program import topologies

    experiment = Experiment.from_dict(load_config(args.config, args.overrides))
    make_plan = plan.fit_batch if args.fit == "batch" else plan.make_plan
    result = make_plan(experiment, topologies.make_topology(args.topology), explain=args.explain)
    options.print_result(result, plan_text.format_plan, as_json=args.json)
    return 0 if result["fits"] else 1
