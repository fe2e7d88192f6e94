#include "analysis/page.h"

#include <fmt/format.h>

#include "base/clock.h"
#include "base/text.h"
#include "base/version.h"

namespace octet {
namespace {

// Light by default, dark when the reader's system is; colours chosen for contrast in both.
constexpr const char* style = R"(
:root{--ink:#1b1f24;--soft:#57606a;--page:#fff;--card:#f6f8fa;--line:#d0d7de;--c0:#0969da;--c1:#cf4a0a;--c2:#1a7f37;--c3:#8250df;--c4:#9a6700;--c5:#bf3989;--heat:0}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b1;--page:#0d1117;--card:#161b22;--line:#30363d;--c0:#58a6ff;--c1:#ff9b5e;--c2:#56d364;--c3:#bc8cff;--c4:#e3b341;--c5:#f778ba}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:960px;padding:24px 20px 60px;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:18px;margin:34px 0 10px;border-bottom:1px solid var(--line);padding-bottom:4px}
p{margin:6px 0}.soft{color:var(--soft)}
.verdict{border:1px solid var(--line);border-left:6px solid var(--tone);background:var(--card);border-radius:6px;padding:12px 16px;margin:14px 0}
.verdict b{font-size:20px;color:var(--tone)}
.good{--tone:var(--c2)}.fair{--tone:var(--c4)}.bad{--tone:var(--c1)}.open{--tone:var(--c0)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line);vertical-align:top}th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:600}
td.text{text-align:left;overflow-wrap:anywhere}
figure{margin:18px 0}figcaption{font-weight:600;display:flex;flex-wrap:wrap;gap:4px 18px;justify-content:space-between}
.legend{font-weight:400;display:flex;flex-wrap:wrap;gap:2px 14px}.key{white-space:nowrap}.swatch{display:inline-block;width:14px;height:4px;margin-right:6px;vertical-align:middle;background:currentColor}
svg{width:100%;height:auto;display:block}svg text{font:11.5px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--line);stroke-width:1}.rule{stroke:var(--soft);stroke-dasharray:5 4}
.line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}.faint{opacity:.28;stroke-width:1}.point{fill:currentColor}.band{fill:currentColor;opacity:.18}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.cell{fill:var(--c1);fill-opacity:var(--heat);stroke:var(--line);stroke-width:.3}
)";

}  // namespace

std::string page(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\">"
      "<meta name=\"color-scheme\" content=\"light "
      "dark\"><title>{0}</title><style>{1}</style></head><body><h1>{0}</h1><p class=\"soft\">octet {2} · "
      "{3}</p>{4}</body></html>\n",
      escape_html(title), style, escape_html(version()), iso_time(wall_seconds()), body);
}

}  // namespace octet
