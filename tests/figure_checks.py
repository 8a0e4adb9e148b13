"""Checks of a drawn figure: labels are there, inside the figure, apart from each other, and no mark is on a label."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation


def check_figure(figure, *, titled=True):
    """Assert that a figure can be read.

    Args:
        figure: A matplotlib figure.
        titled: Whether the figure has its title itself; panels of a report have it in the page.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    panels = [axes for axes in figure.axes if axes.axison and axes.get_visible()]
    assert panels
    for axes in panels:
        check_labels(axes)
    if titled:
        assert any(axes.get_title() or axes.get_title("left") for axes in panels) or figure.texts
    boxes = list_text_boxes(figure, renderer)
    texts = [text for text, _ in boxes]
    assert len(texts) > 2
    width, height = figure.bbox.size
    outside = [t for t, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    assert outside == []
    crossing = [
        (text, other)
        for index, (text, box) in enumerate(boxes)
        for other, other_box in boxes[:index]
        if shrink(box).overlaps(shrink(other_box))
    ]
    assert crossing == []
    marks = [(x, y) for axes in panels for x, y in list_marks(axes)]
    covered = [text for text, box in boxes if any(shrink(box).contains(x, y) for x, y in marks)]
    assert covered == []


def check_labels(axes):
    """Axes with numbers say what they are, in a label or in a title above them."""
    numbers = {name: list_tick_texts(axes, name) for name in "xy"}
    has_numbers = {name: bool(texts) for name, texts in numbers.items()}
    assert axes.get_xlabel() or not has_numbers["x"]
    assert has_numbers["x"] or not axes.get_xlabel()
    assert has_numbers["y"] or not axes.get_ylabel()
    numeric = any(text.lstrip("−-").replace(".", "").isdigit() for text in numbers["y"])
    assert axes.get_ylabel() or axes.get_title() or axes.get_title("left") or not numeric


def list_tick_labels(axes, name):
    """Visible labels at the ticks inside the limits of an axis, `x` or `y`."""
    axis, limits = (axes.xaxis, axes.get_xlim()) if name == "x" else (axes.yaxis, axes.get_ylim())
    ticks = [tick for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
    return [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]


def list_tick_texts(axes, name):
    """What is written at the ticks of an axis."""
    return [label.get_text() for label in list_tick_labels(axes, name)]


def list_text_boxes(figure, renderer):
    """Text and box in pixels of everything that is written, once."""
    boxes = []
    for axes in figure.axes:
        if not axes.axison or not axes.get_visible():
            continue
        ticks = [label for name in "xy" for label in list_tick_labels(axes, name)]
        legend = axes.get_legend()
        written = [*ticks, axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts]
        written += legend.get_texts() if legend is not None else []
        boxes += [(text, axes) for text in written]
    boxes += [(text, None) for text in figure.texts]
    return [
        (text.get_text(), text_box(text, renderer))
        for text, _ in boxes
        if text.get_visible() and text.get_text().strip()
    ]


def text_box(text, renderer):
    """The box of the letters, without the arrow of an annotation."""
    if isinstance(text, Annotation):
        text.update_positions(renderer)
    return (
        super(Annotation, text).get_window_extent(renderer)
        if isinstance(text, Annotation)
        else (text.get_window_extent(renderer))
    )


def shrink(box):
    """The box without a margin of two pixels, since letters rarely fill their line."""
    return box.padded(-2)


def list_marks(axes):
    """Positions of all marks in pixels."""
    for line in axes.lines:
        if line.get_marker() not in ("None", None, "", " ") and line.get_visible():
            yield from line.get_transform().transform(line.get_xydata())
    for collection in axes.collections:
        if len(collection.get_offsets()):
            yield from collection.get_offset_transform().transform(collection.get_offsets())
