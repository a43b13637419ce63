#pragma once
// What `discover` and `info` print: tables for people, JSON for programs. Everything a peer said is printable ASCII.

#include <string>

#include "initiator/initiator.h"

namespace rbt::tools {

enum class Format : std::uint8_t { table, json };

[[nodiscard]] std::string describe(const initiator::DiscoveryLog& log, Format format);
[[nodiscard]] std::string describe(const initiator::Session& session, Format format);

}  // namespace rbt::tools
