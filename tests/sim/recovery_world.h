#pragma once
// A volume whose target and network fail it, and who must not notice: the body of recovery_simulation.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "initiator/volume.h"
#include "target/store/drop_unflushed.h"
#include "target/target.h"
#include "tests/sim/block_model.h"
#include "transport/sim/network.h"

namespace rbt::test {

struct RecoveryPlan {
  enum class Trouble : std::uint8_t {
    network,    ///< connections are lost by chance, over a store that is slow by seconds; the target lives on
    processes,  ///< the same, and the process that has the volume is killed, and another goes on with what was in flight
    crashes,    ///< the target dies with what it had not made durable, and comes back
  } trouble = Trouble::network;
  initiator::Fencing fencing = initiator::Fencing::on;
  bool remember = true;  ///< the volume keeps what it has not flushed
  bool succeed = true;   ///< processes know of each other
};

struct RecoveryResult {
  std::string failure;  ///< empty: the caller has noticed nothing
  std::uint64_t requests = 0;
  std::uint64_t crashes = 0;  ///< of the target, or of the volume's process
  std::uint64_t losses = 0;
  std::uint64_t attempts = 0;
  std::uint64_t reissued = 0;
  std::uint64_t rewritten = 0;
  std::uint64_t trace_hash = 0;
};

class RecoveryWorld {
 public:
  RecoveryWorld(std::uint64_t seed, const RecoveryPlan& plan, Logger& logger);
  ~RecoveryWorld();
  [[nodiscard]] RecoveryResult run();

 private:
  static constexpr std::size_t kWorkers = 8;
  static constexpr std::size_t kLanesMax = 3;  // a seed has one to so many
  static constexpr std::uint64_t kBlocks = 64;
  static constexpr std::uint64_t kTransferBlocks = 8;

  /// One request at a time, with memory of its own.
  struct Worker {
    RecoveryWorld* world = nullptr;
    initiator::Request request{};
    std::span<std::byte> memory;
    iovec piece{};
    BlockRange range;
    std::size_t lane = 0;
    std::uint64_t tag = 0;
    Moment began = 0;
    bool busy = false;
    bool orphaned = false;  // its process was killed
  };

  void open_volume(Duration patience);
  void kill_process();
  void power_on();
  void power_off();
  void disturb();
  void submit(Worker& worker);
  [[nodiscard]] initiator::Submitted resubmit(Worker& worker);
  [[nodiscard]] initiator::Submitted submit_chosen(Worker& worker, initiator::Operation operation);
  void finish(Worker& worker);
  void check_read(const Worker& worker);
  void work(Duration time, bool trouble);
  void drain();
  void read_everything();
  void note_statistics();
  void fail(std::string what);
  [[nodiscard]] bool failed() const noexcept { return !result_.failure.empty(); }
  [[nodiscard]] Instant now() { return network_.clock().now(); }

  std::uint64_t seed_;
  RecoveryPlan plan_;
  Logger& logger_;
  transport::sim::Network network_;
  Random random_;
  std::unique_ptr<target::Store> disk_;
  target::DropUnflushed* cache_ = nullptr;  // with crashes
  std::unique_ptr<transport::Reactor> target_reactor_;
  std::unique_ptr<target::Target> target_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::vector<std::unique_ptr<transport::Reactor>> lane_reactors_;  // of the second lane and of the third
  transport::SharedMemory arena_;
  std::unique_ptr<initiator::Volume> volume_;
  std::optional<initiator::Succession> record_;  // that processes leave to each other
  bool killing_ = false;
  std::array<Worker, kWorkers> workers_{};
  BlockModel model_{kBlocks};
  Moment moment_ = 1;
  std::uint64_t next_tag_ = 1;
  RecoveryResult result_;
};

}  // namespace rbt::test
