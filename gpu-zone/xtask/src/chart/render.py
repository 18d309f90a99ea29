"""Lints the chart and renders it with each values file of its ci folder.

render.py CHART FOLDER: one folder a values file, one file a template. Exit code 1 says that the
chart is wrong, and standard error what.
"""

import pathlib
import sys

from helm_python import chart as helm
from helm_python.errors import HelmError


def main(folder: pathlib.Path, out: pathlib.Path) -> list[str]:
    wrong = []
    chart = helm.Chart.load(folder)
    cases = sorted((folder / "ci").glob("*-values.yaml"))
    if not cases:
        wrong.append("the chart's ci folder has no values")
    for case in cases:
        values = helm.values_from_yaml(case.read_text())
        report = helm.lint(folder, values, strict=True)
        # 1 is information, like a missing icon.
        wrong += [f"{case.name}: {m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1]
        wrong += [f"{case.name}: {error}" for error in report["errors"]]
        chart.validate_schema(chart.merge_values(values))
        for name, text in chart.render(values, name="gpu-zone", namespace="gpu-zone").items():
            if text.strip() and name.endswith(".yaml"):
                file = out / case.name.removesuffix("-values.yaml") / name.split("/templates/")[-1].replace("/", "-")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
    for case in sorted((folder / "ci" / "refused").glob("*.yaml")):
        try:
            chart.validate_schema(chart.merge_values(helm.values_from_yaml(case.read_text())))
        except HelmError:
            continue
        wrong.append(f"{case.name} is no valid file of values, and is taken for one")
    return wrong


if __name__ == "__main__":
    found = main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if found else 0)
