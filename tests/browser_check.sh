#!/usr/bin/env bash
# Opens a report in a real headless browser without a network, and checks that all of it is drawn.
#
#   bash tests/browser_check.sh REPORT.html [SCREENSHOT.png]
#
# Needs chromium (Debian: apt-get install chromium). As root, or where user namespaces are allowed, the browser runs in a
# network namespace of its own, in which nothing can be reached. The screenshot is there to be looked at.
set -euo pipefail
report="$(realpath "${1:?usage: browser_check.sh REPORT.html [SCREENSHOT.png]}")"
profile="$(mktemp -d)"
trap 'rm -rf "$profile"' EXIT
shot="$(realpath -m "${2:-$profile/shot.png}")"
browser="$(command -v chromium || command -v chromium-browser || command -v google-chrome)" ||
    { echo "error: no chromium is installed" >&2; exit 1; }
alone=(unshare --net --map-root-user)
"${alone[@]}" true 2>/dev/null || { alone=(); echo "no network namespace can be made: the browser is not cut off" >&2; }

run() {
    "${alone[@]}" "$browser" --headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync \
        --disable-component-update --no-first-run --hide-scrollbars --user-data-dir="$profile" "$@" 2>>"$profile/log"
}

# A copy with a script that counts, without the policy that would forbid the script: pictures that did not load have no width.
python3 - "$report" "$profile/counting.html" <<'PYTHON'
import re, sys
page = open(sys.argv[1], encoding="utf-8").read()
page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
script = """<script>addEventListener("load", () => {
  const all = [...document.images], drawn = all.filter(each => each.complete && each.naturalWidth > 100).length;
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = `CHECK drawn ${drawn} of ${all.length}, ${wide ? "wider than the window" : "fits"}`; })</script>"""
open(sys.argv[2], "w", encoding="utf-8").write(page.replace("</body>", script + "</body>"))
PYTHON
for width in 1200 480; do
    found="$(run --window-size="$width,1000" --virtual-time-budget=5000 --dump-dom "file://$profile/counting.html" |
        grep -o 'CHECK drawn [^<]*' | head -n 1 || true)"
    echo "at $width pixels: ${found:-nothing was drawn}"
    [[ "$found" =~ drawn\ ([0-9]+)\ of\ ([0-9]+),\ fits ]] && ((BASH_REMATCH[1] == BASH_REMATCH[2] && BASH_REMATCH[1] > 0)) ||
        { tail -n 5 "$profile/log" >&2; exit 1; }
done
run --window-size=1200,4600 --screenshot="$shot" "file://$report"
[[ -s "$shot" ]] || { tail -n 5 "$profile/log" >&2; exit 1; }
[[ -z "${2:-}" ]] || echo "look at $shot"
