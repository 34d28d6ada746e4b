"""What may stand in the YAML files of ``launch/``: their interfaces' fields, as documented, down to the last value.

Of JobSet v1alpha2, batch/v1 and core/v1 (jobset.sigs.k8s.io/docs/reference, kubernetes.io/docs/reference) and of
SkyPilot's task files (docs.skypilot.co, YAML spec): those fields that such a file has any use for. An unknown one is an
error, as it is to those who read them.

A schema is a type, a set of values, ``[schema]`` for a list, a dictionary of fields (``name!``: required), or ``Free``
for a dictionary whose names are the user's; a tuple of them is one of these.
"""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Free:
    """Any names that match ``names``, with values of one schema."""

    values: Any
    names: str = r".+"


@dataclass(frozen=True)
class Text:
    """A string of this form."""

    form: str


NAME = Text(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label, as names of Kubernetes are
AMOUNT = (int, Text(r"[0-9.]+([KMGTP]i?|m)?"))
LABELS = Free(str, names=r"([a-z0-9.-]+/)?[A-Za-z0-9._-]+")
METADATA = {"name": NAME, "namespace": NAME, "labels": LABELS, "annotations": LABELS}
FIELD = {"fieldRef!": {"fieldPath!": Text(r"(metadata|spec|status)\.[A-Za-z]+(\['[^']+'\])?"), "apiVersion": str}}
VARIABLE = ({"name!": Text(r"[A-Za-z_]\w*"), "value!": str}, {"name!": Text(r"[A-Za-z_]\w*"), "valueFrom!": FIELD})
CONTAINER = {
    "name!": NAME,
    "image!": str,
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [str],
    "args": [str],
    "env": [VARIABLE],
    "ports": [{"containerPort!": int, "name": NAME, "protocol": {"TCP", "UDP", "SCTP"}}],
    "resources": {"limits": Free(AMOUNT), "requests": Free(AMOUNT)},
    "volumeMounts": [{"name!": NAME, "mountPath!": Text(r"/.*"), "readOnly": bool, "subPath": str}],
    "securityContext": {"privileged": bool, "runAsUser": int},
}
VOLUME = (
    {"name!": NAME, "persistentVolumeClaim!": {"claimName!": NAME, "readOnly": bool}},
    {"name!": NAME, "emptyDir!": {"medium": {"", "Memory"}, "sizeLimit": AMOUNT}},
    {"name!": NAME, "nfs!": {"server!": str, "path!": str, "readOnly": bool}},
)
TOLERATION = {"key": str, "operator": {"Exists", "Equal"}, "value": str, "effect": {"NoSchedule", "NoExecute"}}
POD = {
    "metadata": METADATA,
    "spec!": {
        "restartPolicy!": {"Never", "OnFailure"},
        "terminationGracePeriodSeconds": int,
        "nodeSelector": LABELS,
        "tolerations": [TOLERATION],
        "containers!": [CONTAINER],
        "volumes": [VOLUME],
        "serviceAccountName": NAME,
        "hostNetwork": bool,
        "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    },
}
EXIT_CODES = {"containerName": NAME, "operator!": {"In", "NotIn"}, "values!": [int]}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "podFailurePolicy": {
        "rules!": [{"action!": {"FailJob", "FailIndex", "Ignore", "Count"}, "onExitCodes!": EXIT_CODES}]
    },
    "template!": POD,
}
FAILURE_RULE = {
    "name": str,
    "action!": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
    "targetReplicatedJobs": [NAME],
    "onJobFailureReasons": [
        {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}
    ],
}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
    "kind!": {"JobSet"},
    "metadata!": {**METADATA, "name!": NAME},
    "spec!": {
        "replicatedJobs!": [
            {"name!": NAME, "replicas": int, "groupName": str, "template!": {"metadata": METADATA, "spec!": JOB}}
        ],
        "network": {"enableDNSHostnames": bool, "subdomain": NAME, "publishNotReadyAddresses": bool},
        "successPolicy": {"operator!": {"All", "Any"}, "targetReplicatedJobs": [NAME]},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [FAILURE_RULE],
        },
        "coordinator": {"replicatedJob!": NAME, "jobIndex": int, "podIndex": int},
        "suspend": bool,
        "managedBy": str,
        "ttlSecondsAfterFinished": int,
    },
}
MOUNT = (
    Text(r"\S+"),
    {"name": str, "source": str, "store": {"s3", "gcs", "azure", "r2"}, "mode": {"MOUNT", "COPY", "MOUNT_CACHED"},
     "persistent": bool},
)  # fmt: skip
SKYPILOT = {
    "name": Text(r"[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?"),
    "workdir": str,
    "num_nodes": int,
    "resources": {
        "accelerators": (Text(r"[\w-]+(:\d+)?"), Free(int)),
        "infra": str,
        "instance_type": str,
        "cpus": (int, str),
        "memory": (int, str),
        "disk_size": (int, str),
        "image_id": str,
        "use_spot": bool,
        "job_recovery": (
            str,
            {"strategy": {"FAILOVER", "EAGER_NEXT_REGION"}, "max_restarts_on_errors": int,
             "recover_on_exit_codes": (int, [int])},
        ),
    },
    "envs": Free((str, int), names=r"[A-Za-z_]\w*"),
    "secrets": Free(str, names=r"[A-Za-z_]\w*"),
    "file_mounts": Free(MOUNT, names=r"[/~.].*"),
    "setup": str,
    "run": str,
}  # fmt: skip


def errors(value: Any, schema: Any, at: str = "") -> list[str]:
    """What of ``value`` is not as ``schema`` says, each with its place; empty where all is."""
    if isinstance(schema, tuple):
        found = [errors(value, one, at) for one in schema]
        # The alternative that was meant is the one that goes wrong least, and last.
        return min(found, key=lambda of_one: (len(of_one), -len("".join(of_one).partition(":")[0])))
    if isinstance(schema, Text):
        good = isinstance(value, str) and re.fullmatch(schema.form, value)
        return [] if good else [f"{at}: {value!r} is not of the form {schema.form}"]
    if isinstance(schema, (set, frozenset)):
        return [] if isinstance(value, str) and value in schema else [f"{at}: {value!r} is none of {sorted(schema)}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{at}: {value!r} is no list"]
        return [error for i, one in enumerate(value) for error in errors(one, schema[0], f"{at}[{i}]")]
    if isinstance(schema, (Free, dict)):
        if not isinstance(value, dict):
            return [f"{at}: {value!r} has no fields"]
        if isinstance(schema, Free):
            known = {name: schema.values for name in value if re.fullmatch(schema.names, str(name))}
            required = []
        else:
            known = {name.removesuffix("!"): inner for name, inner in schema.items()}
            required = [name.removesuffix("!") for name in schema if name.endswith("!")]
        found = [f"{at}.{name} is missing" for name in required if name not in value]
        for name, inner in value.items():
            found += errors(inner, known[name], f"{at}.{name}") if name in known else [f"{at}.{name}: no such field"]
        return found
    good = isinstance(value, schema) and not (schema is int and isinstance(value, bool))
    return [] if good else [f"{at}: {value!r} is no {schema.__name__}"]
