#include "device/device.h"

namespace octet {

const char* name_of(GemmClass c) {
  switch (c) {
    case GemmClass::Fprop:
      return "fprop";
    case GemmClass::Dgrad:
      return "dgrad";
    case GemmClass::Wgrad:
      return "wgrad";
    case GemmClass::HeadFprop:
      return "head fprop";
    case GemmClass::HeadDgrad:
      return "head dgrad";
    case GemmClass::HeadWgrad:
      return "head wgrad";
    case GemmClass::Attention:
      return "attention";
  }
  return "unknown";
}

}  // namespace octet
