#include "common/nvme/text.h"

#include <algorithm>

namespace rbt::nvme {
namespace {

constexpr char ascii(char c) noexcept {
  return c >= 0x20 && c <= 0x7e ? c : '?';
}

}  // namespace

void set_padded(std::span<char> field, std::string_view text) noexcept {
  text = text.substr(0, field.size());
  const auto end = std::transform(text.begin(), text.end(), field.begin(), ascii);
  std::fill(end, field.end(), ' ');
}

std::string get_padded(std::span<const char> field) {
  std::string text(field.begin(), std::find(field.begin(), field.end(), '\0'));
  text.erase(text.find_last_not_of(' ') + 1);
  std::transform(text.begin(), text.end(), text.begin(), ascii);
  return text;
}

}  // namespace rbt::nvme
