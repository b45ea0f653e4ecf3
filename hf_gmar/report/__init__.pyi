from .html_report import ReportWriter, save_report
from .model_card import CardWriter, insert_section, save_card
from .push import check_push, push_card

__all__ = [
    "CardWriter",
    "ReportWriter",
    "check_push",
    "insert_section",
    "push_card",
    "save_card",
    "save_report",
]
