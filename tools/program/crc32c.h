#pragma once
// crc32c (Castagnoli), as iSCSI and NVMe have it.

#include <boost/crc.hpp>

namespace rbt::tools {

/// process_bytes() any number of times, then checksum().
using Crc32c = boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true>;

}  // namespace rbt::tools
