"""A picture of a failover as the client saw it: answers per second and their latency over time, as a small SVG."""
import html
import math

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 900, 170, 64, 16, 64, 44
STYLE = """text{font:12px sans-serif;fill:#333} .title{font-size:15px;font-weight:bold} .axis{stroke:#999;fill:none}
.grid{stroke:#e4e4e4;fill:none} .rate{fill:#4878a8} .latency{fill:#c06030} .mark{stroke:#b00020;stroke-dasharray:4 3;fill:none}
.marktext{fill:#b00020;font-size:11px}"""


def _nice(top):
    """The next of 1, 2, 5 times a power of ten that is not below `top`."""
    power = 10 ** math.floor(math.log10(max(top, 1e-9)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= top)


class _Panel:
    """One diagram of the sheet: a value over seconds, linear or logarithmic."""

    def __init__(self, out, y, seconds, low, high, logarithmic, label):
        self.out, self.y, self.seconds, self.low, self.high, self.logarithmic = out, y, seconds, low, high, logarithmic
        out.append(f'<text x="{LEFT}" y="{y - 8}">{html.escape(label)}</text>')
        steps = [low * 10 ** i for i in range(round(math.log10(high / low)) + 1)] if logarithmic else [high * i / 4 for i in range(5)]
        for step in steps:
            at = self.height(step)
            out.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
                       f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{step:g}</text>')
        out.append(f'<path class="axis" d="M{LEFT} {y}V{y + PANEL}H{WIDTH - RIGHT}"/>')

    def across(self, second):
        return LEFT + (WIDTH - LEFT - RIGHT) * second / self.seconds

    def height(self, value):
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return self.y + PANEL * (1 - min(share, 1))


def failover(samples, marks, title, bucket_s=0.25):
    """SVG text. samples: (time of the answer, seconds it took), times in seconds since the same start; marks: (time, label)."""
    seconds = max(at for at, _ in samples)
    counts = [0] * (int(seconds / bucket_s) + 1)
    for at, _ in samples:
        counts[int(at / bucket_s)] += 1
    rates = [count / bucket_s for count in counts]
    height = TOP + 2 * (PANEL + GAP) + 8
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
           f"<style>{STYLE}</style>", '<rect width="100%" height="100%" fill="white"/>',
           f'<text class="title" x="{LEFT}" y="22">{html.escape(title)}</text>']
    rate = _Panel(out, TOP, seconds, 0, _nice(max(rates)), False, "acknowledged writes per second")
    for index, value in enumerate(rates):
        if value:
            x, y = rate.across(index * bucket_s), rate.height(value)
            width = min(rate.across((index + 1) * bucket_s), WIDTH - RIGHT) - x
            out.append(f'<rect class="rate" x="{x:.1f}" y="{y:.1f}" width="{max(width - 0.5, 0.5):.1f}" height="{TOP + PANEL - y:.1f}"/>')
    below = TOP + PANEL + GAP
    top_ms = 10 ** math.ceil(math.log10(max(took for _, took in samples) * 1000 + 1e-9))
    latency = _Panel(out, below, seconds, 0.1, max(top_ms, 1), True, "latency of each write, ms")
    for at, took in samples[::max(1, len(samples) // 6000)]:
        out.append(f'<circle class="latency" cx="{latency.across(at):.1f}" cy="{latency.height(took * 1000):.1f}" r="1.3"/>')
    for second in range(0, int(seconds) + 1, max(1, int(seconds / 12))):
        out.append(f'<text x="{latency.across(second):.1f}" y="{below + PANEL + 16}" text-anchor="middle">{second} s</text>')
    for row, (at, label) in enumerate(marks):
        x, y = rate.across(at), 36 + 11 * (row % 2)
        anchor, shift = ("end", -3) if row == 0 else ("start", 3)
        out.append(f'<path class="mark" d="M{x:.1f} {y + 2}V{below + PANEL}"/><text class="marktext" x="{x + shift:.1f}" y="{y}" '
                   f'text-anchor="{anchor}">{html.escape(label)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def histogram(buckets, unit="ms", width=40):
    """Lines of text: buckets as (upper bound, count), empty ones at both ends left out."""
    used = [index for index, (_, count) in enumerate(buckets) if count]
    if not used:
        return ["(none)"]
    shown = buckets[used[0]:used[-1] + 1]
    most = max(count for _, count in shown)
    return [f"  <= {bound:9.3f} {unit}  {count:7d}  {'#' * max(round(count * width / most), 1 if count else 0)}" for bound, count in shown]
