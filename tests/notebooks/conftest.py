"""How nbval compares the references: text of the tagged cells, never pictures or stderr."""


def pytest_collectstart(collector):
    """Applies to each notebook that nbval collects."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "text/html", "image/png", "image/svg+xml", "application/pdf")
        collector.output_timeout = 60
