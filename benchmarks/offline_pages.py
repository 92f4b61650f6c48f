"""Make the pages of ``asv publish`` work without a network: ``python -m benchmarks.offline_pages [.asv/html]``.

They load jQuery, Flot, Bootstrap and others from content networks. This fetches the same libraries once with npm, puts
them beside the pages and points the pages to them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# npm package, and which of its files stands for which name in a page's links
LIBRARIES = {
    "jquery@3.3.1": {"jquery-3.3.1.min.js": "jquery/dist/jquery.min.js"},
    "flot@0.8.3": {
        "jquery.flot.min.js": "flot/jquery.flot.js",
        "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
        "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
        "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    },
    "flot-orderbars@1.0.0": {"jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js"},
    "stupid-table-plugin@1.1.3": {"stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js"},
    "blueimp-md5@2.19.0": {"md5.min.js": "blueimp-md5/js/md5.min.js"},
    "bootstrap@3.1.1": {
        "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
        "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
    },
}
FILES = {link: path for files in LIBRARIES.values() for link, path in files.items()}


def localise(page: str) -> tuple[str, list[str]]:
    """The page with links to content networks turned into local ones, and the names it wants in ``vendor/``."""
    wanted = []

    def local(match: re.Match[str]) -> str:
        name = match["url"].rpartition("/")[2]
        if name not in FILES:
            return match[0]
        wanted.append(name)
        return f'{match["attribute"]}="vendor/{name}"'

    page = re.sub(r'(?P<attribute>src|href)="(?P<url>https://[^"]+\.(?:js|css))"(?: integrity="[^"]*")?', local, page)
    return page, wanted


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    folder = Path(arguments[0] if arguments else ".asv/html")
    index, npm = folder / "index.html", shutil.which("npm")
    if not index.is_file() or npm is None:
        reason = "npm is not installed" if index.is_file() else f"{index} is not there: run asv publish first"
        print(f"offline_pages: {reason}", file=sys.stderr)
        return 2
    page, wanted = localise(index.read_text())
    vendor = folder / "vendor"
    vendor.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", work, *LIBRARIES]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            return 1
        for name in wanted:
            shutil.copyfile(Path(work, "node_modules", FILES[name]), vendor / name)
    index.write_text(page)
    print(f"{index}: {len(wanted)} files in {vendor}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
