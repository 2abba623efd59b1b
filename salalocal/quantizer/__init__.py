"""From a bf16 model folder to a packed one: `quantize`, resumable. Knows files and formats; runs no network."""

from salalocal.quantizer.report import KindReport, QuantizeProgress, QuantizeReport
from salalocal.quantizer.run import quantize

__all__ = ["KindReport", "QuantizeProgress", "QuantizeReport", "quantize"]
