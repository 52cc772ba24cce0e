"""Files of a workdir → one self-contained HTML page."""
