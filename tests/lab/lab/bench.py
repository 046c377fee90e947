"""Reprise beside Debian's QEMU microvm: the same guest, in one run, taking turns; ratios first."""
import statistics

MONITORS = ("reprise", "qemu")


class Comparison:
    """Figures of both monitors by what was measured, printed as they come and as ratios at the end."""

    def __init__(self, lab):
        self.lab = lab
        self.monitors = lab.word("monitors", ",".join(MONITORS)).split(",")
        if "reprise" in self.monitors:
            lab.need_reprise("run")
        self.figures = {}               # what -> (unit, more is better, {monitor: [figures]})

    def add(self, what, unit, more_is_better, monitor, figure):
        _, _, by_monitor = self.figures.setdefault(what, (unit, more_is_better, {name: [] for name in MONITORS}))
        by_monitor[monitor].append(figure)
        self.lab.log(f"{what}: {monitor} {figure:.2f} {unit}")

    def report(self):
        """Print median ratios; more than 1 means that reprise does better."""
        for what, (unit, more_is_better, by_monitor) in self.figures.items():
            ours, theirs = (statistics.median(by_monitor[name]) if by_monitor.get(name) else 0.0 for name in MONITORS)
            if not ours or not theirs:
                continue
            ratio = ours / theirs if more_is_better else theirs / ours
            self.lab.log(f"x{ratio:.2f}  {what}: reprise {ours:.2f} {unit}, QEMU microvm {theirs:.2f} {unit}")
