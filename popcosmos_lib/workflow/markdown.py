"""Tables in Markdown."""

__all__ = ["table"]


def table(head, rows):
    """Rows of cells below a header, as Markdown."""
    cells = [" ".join(str(cell).split()).replace("|", "\\|") for row in rows for cell in row]
    lines = [cells[i : i + len(head)] for i in range(0, len(cells), len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
