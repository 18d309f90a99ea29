"""Evaluates the webhooks' matchConditions, as an API server does before it asks.

conditions.py FOLDER: the rendered chart, one folder a values file. Exit code 1 says that pods come
to the webhook that should not, or the other way round, and standard error which.
"""

import pathlib
import sys

import yaml
from cel_expr_python import cel
from cel_expr_python.ext import ext_optional

DYNAMIC = cel.Type.DYN
CEL = cel.NewEnv(
    variables={"object": DYNAMIC, "oldObject": DYNAMIC, "request": DYNAMIC},
    extensions=[ext_optional.ExtOptional()],
)
# The resources' names, by the values file.
NAMES = {
    "default": ["gpuzone.dev/gpu", "gpuzone.dev/memory-mib", "gpuzone.dev/memory-percent", "gpuzone.dev/share",
                "gpuzone.dev/passthrough", "gpuzone.dev/mig-1g.10gb", "gpuzone.dev/vgpu-nvidia-592"],
    "everything": ["nvidia.com/gpu", "nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "nvidia.com/gpucores",
                   "nvidia.com/pgpu", "nvidia.com/mig-1g.10gb", "nvidia.com/vgpu-nvidia-592"],
}


def pod(limits=None, annotations=None, init=None, scheduler="default-scheduler"):
    container = {"name": "app"} if limits is None else {"name": "app", "resources": {"limits": limits}}
    spec = {"containers": [container, {"name": "plain", "resources": {}}], "schedulerName": scheduler}
    if init is not None:
        spec["initContainers"] = [{"name": "init", "resources": {"limits": init}}]
    metadata = {"name": "a"} if annotations is None else {"name": "a", "annotations": annotations}
    return {"metadata": metadata, "spec": spec}


def questions(name):
    """(pod, pod before, whether /validate is asked, whether /mutate is asked)"""
    gpu, other = {name: "1"}, {"cpu": "1"}
    given, forged, plain = {"gpuzone.dev/placement": "x"}, {"gpuzone.dev/placement": "y"}, {"a": "b"}
    yield from (
        (pod(gpu), None, True, True),
        (pod(init=gpu), None, True, True),
        (pod(gpu, scheduler="another"), None, True, True),
        (pod(gpu, plain), None, True, True),
        (pod(other, forged), None, True, False),
        (pod(other, plain), None, False, False),
        (pod(other, init=other), None, False, False),
        (pod(), None, False, False),
        (pod({}), None, False, False),
        (pod(gpu), pod(gpu), False, None),
        (pod(gpu, plain), pod(gpu), False, None),
        (pod(gpu, given), pod(gpu, given), False, None),
        (pod(gpu, given), pod(gpu), True, None),
        (pod(gpu), pod(gpu, given), True, None),
        (pod(other, forged), pod(other, given), True, None),
    )


def conditions(folder, kind):
    documents = yaml.safe_load_all((folder / "scheduler-tls.yaml").read_text())
    (found,) = [document for document in documents if document and document["kind"] == kind]
    (webhook,) = found["webhooks"]
    return [CEL.compile(condition["expression"]) for condition in webhook["matchConditions"]]


def asked(expressions, now, before):
    known = {"object": now, "oldObject": before, "request": {"operation": "UPDATE" if before else "CREATE"}}
    return all(expression.eval(data=known).value() is True for expression in expressions)


def main(rendered: pathlib.Path) -> list[str]:
    wrong = []
    for case, names in NAMES.items():
        validating = conditions(rendered / case, "ValidatingWebhookConfiguration")
        mutating = conditions(rendered / case, "MutatingWebhookConfiguration")
        for name in names:
            for now, before, validated, mutated in questions(name):
                if asked(validating, now, before) != validated:
                    wrong.append(f"{case}: validating, {now}, before: {before}")
                if mutated is not None and asked(mutating, now, before) != mutated:
                    wrong.append(f"{case}: mutating, {now}")
    return wrong


if __name__ == "__main__":
    found = main(pathlib.Path(sys.argv[1]))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if found else 0)
