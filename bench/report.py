"""Figures, the goals that they are held against, and the report of a run."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    section: str
    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = True
    """Whether the goal is a lower bound, else an upper one."""

    @property
    def is_met(self) -> bool | None:
        """None where there is no goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def text(self) -> str:
        """The value with its unit."""
        digits = 0 if abs(self.value) >= 100 else 1 if abs(self.value) >= 10 else 2
        return f"{self.value:,.{digits}f} {self.unit}".strip()

    @property
    def verdict(self) -> str:
        """The goal, and whether it is met."""
        if self.goal is None:
            return ""
        bound = "at least" if self.at_least else "at most"
        return f"{bound} {self.goal:g}: {'met' if self.is_met else 'MISSED'}"


@dataclass
class Report:
    """What a run has found."""

    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def add(
        self, section: str, name: str, value: float, unit: str = "", goal: float | None = None, *, at_least: bool = True
    ) -> None:
        """Take up a figure, and print it."""
        figure = Figure(section, name, value, unit, goal, at_least)
        self.figures.append(figure)
        print(f"{section:14} {name:66} {figure.text:>18}  {figure.verdict}", flush=True)

    def leave_out(self, what: str, why: str) -> None:
        """Say that something is not measured."""
        self.left_out.append(f"{what}: {why}")
        print(f"left out: {what}: {why}", flush=True)

    def write(self, directory: Path, command: str) -> Path:
        """Write the report, with plots."""
        directory.mkdir(parents=True, exist_ok=True)
        lines = ["# Benchmarks", "", f"`{command}` on {_machine()}", ""]
        for section in dict.fromkeys(figure.section for figure in self.figures):
            lines += [
                f"## {section}",
                "",
                f"`make bench ARGS={section}`",
                "",
                "| figure | value | goal |",
                "|---|---|---|",
            ]
            figures = [figure for figure in self.figures if figure.section == section]
            lines += [f"| {figure.name} | {figure.text} | {figure.verdict} |" for figure in figures]
            if plot(directory / f"{section}.svg", section, figures):
                lines += ["", f"![{section}]({section}.svg)"]
            lines.append("")
        lines += [f"- Left out: {line}" for line in self.left_out]
        path = directory / "report.md"
        path.write_text("\n".join(lines) + "\n")
        return path


def _machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({models[0] if models else platform.machine()}), Python {platform.python_version()}"


def plot(path: Path, title: str, figures: Sequence[Figure]) -> bool:
    """Draw the figures of the most frequent unit as bars; False where there is nothing to compare."""
    units = [figure.unit for figure in figures]
    unit = max(set(units), key=units.count)
    shown = [figure for figure in figures if figure.unit == unit]
    if len(shown) < 2:
        return False
    import matplotlib as mpl  # noqa: PLC0415 - slow to load

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice

    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.35 * len(shown)), layout="constrained")
    names = [each.name for each in shown][::-1]
    bars = axes.barh(names, [each.value for each in shown][::-1], color="#3b6ea5")
    axes.bar_label(bars, [each.text for each in shown][::-1], padding=3)
    axes.margins(x=0.2)
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)
    return True
