// Charts as inline SVG. Colours are CSS classes, so that a page decides between light and dark.
#pragma once
#include <string>
#include <vector>

namespace octet {

struct Series {
  std::string name;
  std::vector<double> x, y;  // points with a non-finite y break the line
  int color = 0;             // class c0 .. c5
  bool faint = false;        // raw data behind a smoothed line; not in the legend
  bool points = false;       // markers instead of a line
};
struct Band {  // filled area between low and high
  std::vector<double> x, low, high;
  int color = 0;
};
struct Chart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  std::vector<Band> bands;
  std::vector<double> rules;  // horizontal reference lines
  bool log_y = false;
};

// A <figure> with title, legend and SVG. Every string is escaped. Long series are thinned to what a screen
// can show.
std::string render(const Chart& chart);

// Rows x columns of values in [0, 1] (NaN: no data), darker is larger; cells carry their value as a tooltip.
struct HeatMap {
  std::string title;
  std::vector<std::string> rows;
  std::vector<int64_t> columns;             // steps
  std::vector<std::vector<double>> values;  // [rows][columns], shares
};
std::string render(const HeatMap& map);

}  // namespace octet
