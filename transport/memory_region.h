#pragma once
// Registered memory: what a fabric may move data into and out of.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "common/result.h"

namespace rbt::transport {

/// What a peer may do to a registered region; a region's owner may always read it, and write it if it is
/// writable, through its lkey.
enum class RemoteAccess : std::uint8_t { none, read, write, read_write };

/// Puts data into its owner's memory where a memcpy will not do, because it would leave off in the middle of a block if the
/// process was killed meanwhile, or meet a page that cannot be found.
class Landing {
 public:
  virtual ~Landing() = default;
  /// What is carried out in several pieces is cut where the address of the memory is a multiple of this.
  static constexpr std::size_t kUnit = 4096;
  /// `data`, the peer's memory, at `at` of the region. Returns how many bytes were copied to do so; 0: the data could not be
  /// read, which costs the connection. What becomes of the data in its place is for the owner to know. On the poll group's
  /// thread; several at once, for different places.
  [[nodiscard]] virtual std::size_t land(std::byte* at, std::span<const std::byte> data) noexcept = 0;
};

/// Memory to register. `fd` is the memfd behind it where there is one (sealed against shrinking): what the shm fabric
/// needs to let a peer reach it. -1: anonymous; then only verbs and sim can register it for remote access.
struct MemorySpan {
  std::byte* data = nullptr;
  std::size_t size = 0;
  int fd = -1;
  std::uint64_t fd_offset = 0;
  bool writable = true;  ///< false: mapped for reading only, also for its owner
  /// How data that an RDMA READ fetches gets into it, if ProtectionDomain::uses_landings(); null: anyhow. Not for memory that
  /// peers write themselves. Outlives the connections that may use it.
  Landing* landing = nullptr;
};

/// A registration. Its destructor is the fence: when it has returned, no peer can reach the memory by this key.
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;
  MemoryRegion(const MemoryRegion&) = delete;
  MemoryRegion& operator=(const MemoryRegion&) = delete;
  [[nodiscard]] std::uint32_t lkey() const noexcept { return lkey_; }
  [[nodiscard]] std::uint32_t rkey() const noexcept { return rkey_; }
  [[nodiscard]] const MemorySpan& span() const noexcept { return span_; }

 protected:
  MemoryRegion(const MemorySpan& span, std::uint32_t lkey, std::uint32_t rkey) noexcept
      : span_(span), lkey_(lkey), rkey_(rkey) {}
  MemorySpan span_;
  std::uint32_t lkey_;
  std::uint32_t rkey_;
};

/// What is registered here can be reached by this domain's connections and by no others (one device, one Fabric).
/// Lives as long as its Fabric. Thread-safe.
class ProtectionDomain {
 public:
  virtual ~ProtectionDomain() = default;
  /// Registers all of `memory`, which must stay mapped until the region is destroyed. Errors: `resource` with the bytes
  /// needed and the RLIMIT_MEMLOCK seen; `unsupported` for memory that cannot be registered or shared.
  [[nodiscard]] virtual Result<std::unique_ptr<MemoryRegion>> register_memory(const MemorySpan& memory,
                                                                              RemoteAccess access) = 0;
  /// Whether MemorySpan::landing is used: by fabrics whose CPU copies. Adapters do not know it. Constant.
  [[nodiscard]] virtual bool uses_landings() const noexcept { return false; }
  /// For messages: "rxe0", "shm", "sim".
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
};

/// A local piece of memory inside a region (ibv_sge).
struct Segment {
  std::byte* data = nullptr;
  std::uint32_t length = 0;
  std::uint32_t lkey = 0;
};

}  // namespace rbt::transport
