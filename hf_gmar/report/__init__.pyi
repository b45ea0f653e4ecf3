from .html_report import ReportWriter, save_report

__all__ = ["ReportWriter", "save_report"]
