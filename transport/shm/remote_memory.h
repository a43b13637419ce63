#pragma once
// The peer's registered memory, as one connection may reach it.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/result.h"
#include "transport/memory_region.h"
#include "transport/shm/key_table.h"
#include "transport/shm/message.h"

namespace rbt::transport::shm {

struct RemoteLimits {
  std::size_t mappings_max = 256;               ///< different memfds of one peer connection
  std::uint64_t mapped_bytes_max = 1ull << 40;  ///< of address space, of one peer connection
  bool huge_pages = false;                      ///< take regions on huge pages
};

/// The regions a peer has announced on one connection, and our mappings of them. A memfd is mapped once, however many
/// regions lie in it; its descriptor is not kept. One thread.
class RemoteMemory {
 public:
  explicit RemoteMemory(const RemoteLimits& limits) noexcept : limits_(limits) {}
  ~RemoteMemory() { clear(); }
  RemoteMemory(const RemoteMemory&) = delete;
  RemoteMemory& operator=(const RemoteMemory&) = delete;

  /// Errors say what was wrong with the announcement: the connection must end.
  [[nodiscard]] Result<void> announce(const AnnounceMessage& message, const Descriptor& descriptor);
  /// False: no such key was announced.
  [[nodiscard]] bool revoke(std::uint32_t key);
  /// This connection's peer has been told that the key is invalid: from now on it is, here.
  void invalidate(std::uint32_t key);
  void clear() noexcept;

  enum class Use : std::uint8_t { read, write };
  struct [[nodiscard]] Found {
    enum class Verdict : std::uint8_t { granted, unknown_key, refused } verdict = Verdict::unknown_key;
    std::byte* data = nullptr;
  };
  /// Where [address, address + length) of the peer's region `key` is mapped here.
  Found find(std::uint32_t key, std::uint64_t address, std::uint64_t length, Use use) noexcept;
  [[nodiscard]] bool known(std::uint32_t key) noexcept { return regions_.find(key) != nullptr; }

 private:
  struct Mapping {
    std::byte* data = nullptr;  // null: free
    std::uint64_t size = 0;
    dev_t device = 0;
    ino_t inode = 0;
    bool writable = false;
    std::uint32_t regions = 0;
  };
  struct Window {
    std::byte* data = nullptr;
    std::uint64_t base = 0;
    std::uint64_t length = 0;
    std::uint32_t mapping = 0;
    RemoteAccess access = RemoteAccess::none;
    bool invalidated = false;
  };
  [[nodiscard]] Result<std::uint32_t> map(const Descriptor& descriptor, std::uint64_t end, bool writable);
  void release(std::uint32_t mapping) noexcept;

  RemoteLimits limits_;
  KeyTable<Window> regions_;
  std::vector<Mapping> mappings_;
  std::uint64_t mapped_bytes_ = 0;
};

}  // namespace rbt::transport::shm
