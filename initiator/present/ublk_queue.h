#pragma once
// The requests of a ublk device, from the kernel's descriptor to its result: no system call here. The kernel's side is a seam.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "initiator/present/device.h"
#include "initiator/present/ublk_uapi.h"

namespace rbt::initiator {

/// What SET_PARAMS is told about a namespace. `io_max`: of one request.
[[nodiscard]] ublk_params ublk_params_of(const Namespace& disk, Bytes io_max, bool read_only) noexcept;

/// What a device was made with, as the kernel has it; `recover` is its number. Others' may have what rbt does not make.
[[nodiscard]] DeviceOptions ublk_options_of(const ublksrv_ctrl_dev_info& info, bool read_only) noexcept;

/// A request of the kernel's in rbt's words.
struct UblkWish {
  Operation operation = Operation::read;
  BlockRange range;
  std::size_t bytes = 0;  ///< of data
  nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no;
  nvme::Deallocate deallocate = nvme::Deallocate::no;
};
/// Nothing: what this device has not offered. `io_max` bounds the data.
[[nodiscard]] std::optional<UblkWish> decode(const ublksrv_io_desc& descriptor, BlockShift shift,
                                             Bytes io_max) noexcept;

/// The kernel's side: takes what a tag has to say, and hands out requests through UblkQueue::on_answer().
class UblkKernel {
 public:
  virtual ~UblkKernel() = default;
  /// First word of a tag: ready for a request, with the data of writes to be put into `slot`.
  virtual void fetch(std::uint32_t tag, std::span<std::byte> slot) = 0;
  /// The request of `tag` is done: bytes or 0, or a negative errno. Data of a read is in `slot`, where that of the next write goes.
  virtual void commit(std::uint32_t tag, int result, std::span<std::byte> slot) = 0;
};

/// All tags of the hardware queues that one lane of the volume serves, numbered queue after queue. Each is with the kernel, with the
/// volume, or waits for room there, and has a slot of memory for life: what a swap would save, memory, is needed anyway, for any tag
/// may be a write. Belongs to the lane's thread. No allocation per request.
class UblkQueue {
 public:
  /// `slots`: one per tag. Lane and kernel outlive it.
  UblkQueue(VolumeLane& lane, UblkKernel& kernel, std::span<const std::span<std::byte>> slots);
  /// let_go() was called, or no request is with the volume.
  ~UblkQueue();
  UblkQueue(const UblkQueue&) = delete;
  UblkQueue& operator=(const UblkQueue&) = delete;

  void fetch_all();
  /// The kernel answers for a tag that is with it: 0 and a request, or a negative errno, with which it takes the tag back.
  void on_answer(std::uint32_t tag, int result, const ublksrv_io_desc& descriptor);
  /// Tries again those that the volume had no room for, in the order of their coming. Returns how many it took.
  std::size_t retry();
  /// From now on nothing is committed: what is with the volume may end as it likes.
  void let_go() noexcept { let_go_ = true; }

  [[nodiscard]] std::uint32_t with_kernel() const noexcept { return with_kernel_; }
  [[nodiscard]] std::uint32_t waiting() const noexcept { return waiting_; }
  // Any thread.
  [[nodiscard]] std::uint32_t with_volume() const noexcept { return with_volume_.load(std::memory_order_relaxed); }
  /// Tags that the kernel has taken back.
  [[nodiscard]] std::uint32_t ended() const noexcept { return ended_.load(std::memory_order_acquire); }
  [[nodiscard]] bool all_ended() const noexcept { return ended() == tags_.size(); }
  /// The errno of the first that was taken back; 0: none was.
  [[nodiscard]] int why_ended() const noexcept { return why_ended_.load(std::memory_order_relaxed); }

 private:
  enum class Where : std::uint8_t {
    idle,    ///< before fetch_all()
    kernel,  ///< the kernel has it: a request will come, or the end. Left by on_answer()
    volume,  ///< submitted. Left when the volume has done it
    line,    ///< waits for room in the volume. Left by retry()
    ended,   ///< taken back by the kernel
  };
  struct Tag {
    UblkQueue* queue = nullptr;
    Request request{};
    iovec data{};
    BlockRange range;
    std::span<std::byte> slot;
    Tag* next = nullptr;  // in line
    int bytes = 0;        // the result if all goes well
    Where where = Where::idle;
  };

  [[nodiscard]] std::uint32_t number_of(const Tag& tag) const noexcept {
    return static_cast<std::uint32_t>(&tag - tags_.data());
  }
  void begin(Tag& tag, const UblkWish& wish);
  /// False: the volume has no room.
  [[nodiscard]] bool submit(Tag& tag);
  void on_done(Tag& tag);
  void commit(Tag& tag, int result);

  VolumeLane& lane_;
  UblkKernel& kernel_;
  std::vector<Tag> tags_;
  Tag* first_ = nullptr;  // in line
  Tag* last_ = nullptr;
  std::uint32_t with_kernel_ = 0;
  std::uint32_t waiting_ = 0;
  // Written by the lane's thread only.
  std::atomic<std::uint32_t> with_volume_{0};
  std::atomic<std::uint32_t> ended_{0};  // released behind why_ended_
  std::atomic<int> why_ended_{0};
  bool let_go_ = false;
};

}  // namespace rbt::initiator
