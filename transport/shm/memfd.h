#pragma once
// What a descriptor from somebody else must be before it is mapped.

#include <sys/types.h>

#include <cstdint>

#include "common/result.h"

namespace rbt::transport::shm {

struct MemfdFacts {
  std::uint64_t size = 0;
  dev_t device = 0;
  ino_t inode = 0;
  /// hugetlbfs: a hole that its owner punches can be a SIGBUS for us when the machine's pool is empty.
  bool huge = false;
};

/// Errors: `unsupported` unless `fd` is a memfd sealed against shrinking. Ordinary files fail here: they have no seals
/// (a memfd alone can promise that a mapping of it never ends before its end).
[[nodiscard]] Result<MemfdFacts> inspect_memfd(int fd);

}  // namespace rbt::transport::shm
