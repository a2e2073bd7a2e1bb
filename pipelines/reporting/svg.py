"""Figures as SVG: text stays text in the page's font, and no element refers to another by id."""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

from pipelines.reporting.drawing import DPI, HINT, chart_style, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
BORDER = 12  # pixels around a drawing in a file
NAMESPACE = "http://www.w3.org/2000/svg"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: "Figure", label: str, colors: Mapping[str, str]) -> Markup:
    """Return a figure for a page, its colors replaced by the page's CSS variables, which differ in dark mode.

    label: what the drawing shows, for screen readers. colors: the page's colors by the name of their variable.
    """
    root = _svg_root(figure, label)
    variables = {value: f"var(--{name})" for name, value in colors.items()}
    for element in root.iter():
        if "style" in element.attrib:
            style = re.sub("#[0-9a-f]{6}", lambda match: variables.get(match[0], match[0]), element.attrib["style"])
            element.set("style", style)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def svg_file(figure: "Figure", label: str, background: str) -> str:
    """Return a figure as the text of a standalone file, on a background."""
    root = _svg_root(figure, label)
    width, height = (f"{size + 2 * BORDER:g}" for size in figure.bbox.size)
    box = {"x": f"-{BORDER}", "y": f"-{BORDER}", "width": width, "height": height}
    root.insert(0, Element("rect", box, fill=background))
    root.attrib |= {"viewBox": " ".join(box.values()), "width": width, "height": height, "xmlns": NAMESPACE}
    root.attrib["style"] += f"; font-family: {FONT}"
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _svg_root(figure: "Figure", label: str) -> Element:
    text = io.BytesIO()
    with chart_style():
        figure.savefig(text, format="svg", dpi=DPI, metadata=NO_METADATA)
    root = ElementTree.fromstring(text.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    shapes = {element.attrib["id"]: element for element in root.iter("path") if "id" in element.attrib}
    _clean(root, shapes)
    width, height = (f"{size:g}" for size in figure.bbox.size)
    root.attrib = {"class": "drawing", "viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    root.attrib |= {"role": "img", "aria-label": printable(label), "style": "stroke-linejoin: round"}
    return root


def _clean(parent: Element, shapes: Mapping[str, Element]) -> None:
    """Turn hints into titles, inline each shape where it is used, and drop definitions, ids and clips."""
    for child in list(parent):
        if child.tag in ("defs", "metadata"):
            parent.remove(child)
            continue
        if child.tag == "use":
            _place(child, shapes)
        _clean(child, shapes)
        name = child.attrib.pop("id", "")
        child.attrib.pop("clip-path", None)
        if name.startswith(HINT):
            title = SubElement(child, "title")
            title.text = name.removeprefix(HINT)
            child.insert(0, child[-1])
            del child[-1]
        _round(child)


def _place(use: Element, shapes: Mapping[str, Element]) -> None:
    """Replace a use of a shape by the shape itself."""
    shape = next(shapes[value[1:]] for name, value in use.attrib.items() if name.endswith("href"))
    x, y, style = (use.attrib.get(key, "") for key in ("x", "y", "style"))
    use.tag = "path"
    use.attrib = {"d": shape.attrib["d"], "transform": f"translate({x} {y})", "style": style}


def _round(element: Element) -> None:
    """Round coordinates to a hundredth of a pixel, and let text inherit its font."""
    for key in {"d", "x", "y", "transform"} & set(element.attrib):
        value = " ".join(element.attrib[key].split())
        element.set(key, re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", value))
    if "style" in element.attrib:
        element.set("style", re.sub(r"font-family: [^;]*(; )?", "", element.attrib["style"]))
    element.text = element.text if element.tag in ("text", "title") else None
    element.tail = None
