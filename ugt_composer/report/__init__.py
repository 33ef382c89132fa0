"""One HTML file about one or several runs: collecting what there is, figures, and the page."""
