"""A figure as SVG: text stays text, in the page's font, and no element refers to another by an id."""

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
BORDER = 12  # pixels around a drawing that is a file
NAMESPACE = "http://www.w3.org/2000/svg"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: "Figure", label: str, colours: Mapping[str, str]) -> Markup:
    """Return a figure for a page, which holds the colours as CSS variables and has its own in the dark.

    label: what the drawing shows, for who does not see it. colours: the page's, by the name of their variable.
    """
    root = _drawn(figure, label)
    variables = {value: f"var(--{name})" for name, value in colours.items()}
    for element in root.iter():
        if "style" in element.attrib:
            style = re.sub("#[0-9a-f]{6}", lambda found: variables.get(found[0], found[0]), element.attrib["style"])
            element.set("style", style)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def svg_file(figure: "Figure", label: str, background: str) -> str:
    """Return a figure as a file of its own, on a background."""
    root = _drawn(figure, label)
    width, height = (f"{size + 2 * BORDER:g}" for size in figure.bbox.size)
    box = {"x": f"-{BORDER}", "y": f"-{BORDER}", "width": width, "height": height}
    root.insert(0, Element("rect", box, fill=background))
    root.attrib |= {"viewBox": " ".join(box.values()), "width": width, "height": height, "xmlns": NAMESPACE}
    root.attrib["style"] += f"; font-family: {FONT}"
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _drawn(figure: "Figure", label: str) -> Element:
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
    """Say each hint as a title, draw each shape where it is used, and drop definitions, ids and clips."""
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
    """Turn a use of a shape into the shape."""
    shape = next(shapes[value[1:]] for name, value in use.attrib.items() if name.endswith("href"))
    x, y, style = (use.attrib.get(key, "") for key in ("x", "y", "style"))
    use.tag = "path"
    use.attrib = {"d": shape.attrib["d"], "transform": f"translate({x} {y})", "style": style}


def _round(element: Element) -> None:
    """Write places to a hundredth of a pixel, and text in the font of what is around it."""
    for key in {"d", "x", "y", "transform"} & set(element.attrib):
        value = " ".join(element.attrib[key].split())
        element.set(key, re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value))
    if "style" in element.attrib:
        element.set("style", re.sub(r"font-family: [^;]*(; )?", "", element.attrib["style"]))
    element.text = element.text if element.tag in ("text", "title") else None
    element.tail = None
