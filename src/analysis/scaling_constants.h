// The numbers a prediction for many GPUs rests on, each with its source and whether anybody measured it.
#pragma once
#include <map>
#include <string>

namespace octet {

struct ScalingConstant {
  double value = 0;
  std::string unit;
  std::string kind;  // "measured", "published", "assumed" or "given" (on the command line)
  std::string source;
};

class ScalingConstants {
 public:
  // The text of docs/results/scaling_constants.json, or of a file like it. Error(Usage) with the key for a
  // constant that is missing, unknown, without a source, or not above zero.
  static ScalingConstants parse(const std::string& text, const std::string& source_name);
  // docs/results/scaling_constants.json as it was when this program was built.
  static ScalingConstants committed();

  double operator[](const std::string& name) const { return at(name).value; }
  const ScalingConstant& at(const std::string& name) const;
  const std::map<std::string, ScalingConstant>& all() const { return constants_; }
  // Error(Usage) with the nearest name for one that is unknown.
  void give(const std::string& name, double value);
  void give(const std::string& assignment);  // "name=value"

 private:
  std::map<std::string, ScalingConstant> constants_;
};

// "400G" (bit/s), "50GB" (byte/s), with k, M, G or T: byte/s. Error(Usage) naming `option`.
double bandwidth_of(const std::string& text, const std::string& option);

}  // namespace octet
