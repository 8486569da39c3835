#!/usr/bin/env bash
# Opens a page of items (items-TASK.html, or one of `eval compare --html`) in headless Chromium and checks what each filter shows
# against the data in the page. Usage: test-page.sh PAGE
set -euo pipefail
[ $# = 1 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0"; exit 2; }
command -v chromium >/dev/null || { echo "SKIPPED: chromium is not installed"; exit 77; }
page=$(realpath "$1")
counts=$(python3 - "$page" <<'PY'
import json, re, sys
html = open(sys.argv[1], encoding="utf-8").read()
assert not re.search(r'(src|href)\s*=|https?://', html.split('id="data">')[0] + html.rsplit("</script>", 2)[1]), "the page is not self-contained"
items = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])["items"]
first = lambda item: item["a"]["verdicts"][0][1] if item["a"]["verdicts"] else None
sides = lambda item: [side for side in (item["a"], item["b"]) if side]
filters = {
    "all": lambda item: True,
    "wrong": lambda item: first(item) is False,
    "right": lambda item: first(item) is True,
    "invalid": lambda item: any(text == "[invalid]" for side in sides(item) for _, text in side["answers"]),
    "extractors": lambda item: len({text for _, text in item["a"]["answers"]}) > 1,
    "differing": lambda item: bool(item["b"]) and item["a"]["verdicts"] != item["b"]["verdicts"],
}
for name, keep in filters.items():
    print(name, f"{sum(map(keep, items))} of {len(items)} items")
PY
)
while read -r filter expected; do
    dom=$(timeout 60 chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=5000 --dump-dom "file://$page#$filter" 2>/dev/null)
    shown=$(sed -n 's/.*id="count">\([^<]*\)<.*/\1/p' <<<"$dom" | head -1)
    [ "$shown" = "$expected" ] || { echo "$filter: the page shows '$shown', its data have '$expected'"; exit 1; }
    echo "$filter: $shown"
done <<<"$counts"
