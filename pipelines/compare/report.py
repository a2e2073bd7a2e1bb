from pft_core.artifacts import write_json


def write_comparison(report, folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    return {"report_json": folder / "report.json"}
