"""Files of a workdir → one self-contained HTML page."""

from rlhf_jax.report.report import write

__all__ = ['write']
