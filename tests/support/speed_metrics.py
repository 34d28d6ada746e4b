"""Which metrics differ between two runs that compute the same."""

SPEED_METRICS = frozenset(
    f"train/{name}"
    for name in (
        "examples_per_second", "data_wait", "mfu", "flops_per_second_per_device", "hbm_bytes", "hbm_peak_bytes",
        "compile_seconds", "checkpoint_seconds", "checkpoint_disk_seconds",
    )
)  # fmt: skip


def is_speed_metric(name):
    """Whether a metric says how fast a machine was and not what a run computed: no two runs have the same."""
    return name in SPEED_METRICS or name.partition("/")[0] == "goodput"
