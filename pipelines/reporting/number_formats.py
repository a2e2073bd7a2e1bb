"""Formats for the numbers of a report."""


def number(value: float | None, digits: int = 2) -> str:
    """Format a value; empty if there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """Format a p value: 0.034, 0.0004, < 0.0001."""
    if value < 0.0001:
        return "< 0.0001"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.4f}"


def seconds(value: float) -> str:
    """Format a duration: 0.3 s, 42 s, 3 min 05 s."""
    if value < 60:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"
