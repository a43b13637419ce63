#pragma once
// ASCII fields of Identify and of the discovery log: fixed width, padded, not terminated (Base 2.0, 1.4.2).

#include <span>
#include <string>
#include <string_view>

namespace rbt::nvme {

/// Writes `text`, cut to the field, and pads with spaces: serial, model, firmware. Bytes outside 20h to 7Eh
/// become '?'.
void set_padded(std::span<char> field, std::string_view text) noexcept;

/// The field up to its first NUL, without trailing spaces; bytes outside 20h to 7Eh become '?'. Safe to
/// print.
[[nodiscard]] std::string get_padded(std::span<const char> field);

}  // namespace rbt::nvme
