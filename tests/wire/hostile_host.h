#pragma once
// A host that says any bytes at any time to a target, beside a neighbour who must not notice: the neighbour's own
// machine writes and reads back blocks of its own subsystem all the time. At the end of every test the hostile connections
// are closed, and the target must be as it was: connections, controllers, buffers, receive buffers. Credits it checks itself.

#include <catch2/catch.hpp>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "tests/sim/target_rig.h"

namespace rbt::test {

/// Outlives the target: its stores look at it.
struct NeighboursParts {
  Gate neighbours_gate;
  Random neighbours_random{7};
};

/// Values of two and of four bytes to try.
using Words = std::initializer_list<std::uint16_t>;
using DoubleWords = std::initializer_list<std::uint32_t>;

class HostileRig : private NeighboursParts, public TargetRig {
 public:
  static constexpr std::uint32_t kBlock = 4096;
  static constexpr std::uint64_t kBlocks = 1024;  // of the namespace under attack
  static constexpr std::uint32_t kReceives = 32;  // of the target, for everybody
  static constexpr const char* kNeighbours = "nqn.2024-01.example:neighbours";

  /// One reactor for everybody, unless it is said otherwise.
  explicit HostileRig(RigOptions options = {});
  ~HostileRig();

  /// A controller with an I/O queue of 16 entries, for those who do their harm from inside.
  void come_in();

  // What comes back.
  nvme::StatusCode code(RawQueue& on, const nvme::SubmissionQueueEntry& sqe,
                        std::span<const std::byte> in_capsule = {});
  void expect_closed(RawQueue& which);
  /// The queue is alive: what it asks is answered.
  void expect_alive(RawQueue& which);
  /// It is answered or closed, whatever the answer; nothing hangs.
  void say(RawQueue& on, const nvme::SubmissionQueueEntry& sqe, std::span<const std::byte> in_capsule = {});
  /// `what` is done by `host` from a machine of its own, whose connections then end.
  void as_another_host(const std::function<void()>& what);
  /// The neighbour goes on while this happens.
  void let_neighbour_work(std::uint64_t blocks = 4);

  static nvme::SubmissionQueueEntry entry(nvme::IoOpcode opcode, std::uint64_t lba, std::uint64_t count = 1) {
    return nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(count)});
  }
  static nvme::SglDescriptor in_capsule(std::uint64_t offset, std::uint32_t length);
  /// A keyed descriptor with the type byte `type`.
  static nvme::SglDescriptor typed(nvme::SglDescriptor sgl, std::uint8_t type);

  Association association;
  RawQueue* admin = nullptr;
  RawQueue* queue = nullptr;
  std::uint64_t verified = 0;  ///< the neighbour's blocks, written and read back
  bool neighbour_hurt = false;

 private:
  struct Standing {
    std::size_t connections;
    std::size_t controllers;
    std::vector<std::uint64_t> buffers_free;
    bool operator==(const Standing&) const = default;
  };
  static RigOptions with_neighbours(RigOptions options, HostileRig* self);
  [[nodiscard]] Standing standing() const;
  void settle_neighbour();
  void be_neighbour();
  void check_receive_buffers();

  std::unique_ptr<transport::Reactor> neighbours_reactor_;
  std::unique_ptr<RawHost> neighbour_;
  RawQueue* neighbours_queue_ = nullptr;
  std::unique_ptr<HostMemory> neighbours_memory_;
  std::vector<std::byte> written_;
  std::optional<std::uint16_t> awaited_;
  bool reading_ = false;
  bool resting_ = false;
  Instant goes_on_{};
  Standing before_;
};

}  // namespace rbt::test
