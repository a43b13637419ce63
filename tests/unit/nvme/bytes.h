#pragma once
// Bytes written down as a person reads them in a specification or a capture.

#include <array>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "common/nvme/endian.h"

namespace rbt::test {

/// "01 7f*3 00" → 01 7f 7f 7f 00. Anything else throws: a defect of the test.
inline std::vector<std::byte> hex(std::string_view text) {
  std::vector<std::byte> bytes;
  const auto digit = [](char c) -> unsigned {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
    throw std::invalid_argument("not a hexadecimal digit");
  };
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == ' ' || text[i] == '\n') {
      ++i;
      continue;
    }
    if (i + 1 >= text.size()) throw std::invalid_argument("half a byte");
    const auto byte = static_cast<std::byte>(digit(text[i]) * 16 + digit(text[i + 1]));
    i += 2;
    std::size_t count = 1;
    if (i < text.size() && text[i] == '*') {
      count = 0;
      for (++i; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i)
        count = count * 10 + static_cast<std::size_t>(text[i] - '0');
    }
    bytes.insert(bytes.end(), count, byte);
  }
  return bytes;
}

template <nvme::WireType T>
T from_hex(std::string_view text) {
  const auto bytes = hex(text);
  if (bytes.size() != sizeof(T)) throw std::invalid_argument("wrong number of bytes");
  return *nvme::read_wire<T>(bytes);
}

template <nvme::WireType T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto span = nvme::wire_bytes(value);
  return {span.begin(), span.end()};
}

}  // namespace rbt::test
