#pragma once
// The kernel's side of a ublk device's requests: /dev/ublkcN, the descriptors it maps, and one io_uring for some hardware queues.

#include <liburing.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "initiator/present/ring_keeper.h"
#include "initiator/present/ublk_queue.h"
#include "transport/reactor/reactor.h"

namespace rbt::initiator {

struct UblkShape {
  std::uint32_t number = 0;
  std::uint32_t first = 0;   ///< of the hardware queues that this ring has
  std::uint32_t queues = 1;  ///< how many
  std::uint32_t depth = 1;
  bool encoded = true;  ///< command numbers as of Linux 6.4
};

/// Belongs to the reactor's thread, which is the only one that may send it commands: it is the daemon of these queues. One ring,
/// and so one system call per turn for everything that has come and gone; a turn of the reactor is a batch.
class UblkRing final : public UblkKernel, private transport::Source {
 public:
  static constexpr std::uint32_t kTagsMax =
      32768;  // entries of an io_uring: each tag has one at most, so it is never full

  /// `device` is a descriptor of /dev/ublkcN, which it takes.
  [[nodiscard]] static Result<std::unique_ptr<UblkRing>> open(transport::Reactor& reactor, const UblkShape& shape,
                                                              int device);
  /// Lets go of the device, as the end of the process would.
  ~UblkRing() override;
  UblkRing(const UblkRing&) = delete;
  UblkRing& operator=(const UblkRing&) = delete;

  /// Who is told. Before the first fetch(). `on_taken_back`: the kernel has taken tags back, some or all; from within a turn.
  void serve(UblkQueue& queue, std::function<void()> on_taken_back);
  /// Sends what fetch() has put down. All of it in one call, so that a process is killed before it or behind it: a kernel that a dead
  /// process has left with half of the fetches oopses at the next START_USER_RECOVERY. Maps the descriptors only then: they are the first
  /// process's that maps one, until a START_USER_RECOVERY that finds every tag fetched. Error: it is closed.
  [[nodiscard]] Result<void> begin();
  /// Lets go early. It closes by itself when the kernel has taken all tags back: whoever wants the device gone waits for that.
  void close();

  void fetch(std::uint32_t tag, std::span<std::byte> slot) override;
  void commit(std::uint32_t tag, int result, std::span<std::byte> slot) override;

 private:
  UblkRing(transport::Reactor& reactor, const UblkShape& shape, int device) noexcept
      : reactor_(reactor), shape_(shape), device_(device) {}
  [[nodiscard]] Result<void> map_descriptors();
  [[nodiscard]] Result<void> make_ring();
  void put(const ublk::Io& what, std::uint32_t tag, int result, std::span<std::byte> slot);
  std::size_t submit();
  std::size_t reap();
  [[nodiscard]] const ublksrv_io_desc& descriptor(std::uint32_t tag) const noexcept {
    return descriptors_[tag / shape_.depth][tag % shape_.depth];
  }

  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  void disarm() override;

  transport::Reactor& reactor_;
  UblkShape shape_;
  int device_;
  UblkQueue* queue_ = nullptr;
  std::function<void()> on_taken_back_;
  std::vector<const ublksrv_io_desc*> descriptors_;  // per hardware queue, read-only, the kernel's
  std::size_t mapping_ = 0;                          // bytes of each
  io_uring ring_{};
  std::unique_ptr<RingKeeper> keeper_;
  int event_fd_ = -1;
  bool ring_open_ = false;
};

}  // namespace rbt::initiator
