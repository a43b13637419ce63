#pragma once
// Target, initiator and faults in one simulated world, driven by one seed: the body of session_simulation.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block_model.h"
#include "initiator/initiator.h"
#include "target/target.h"
#include "transport/sim/network.h"

namespace rbt::test {

struct SimulationResult {
  std::string failure;  ///< empty: all went well
  std::uint64_t trace_hash = 0;
  std::uint64_t requests = 0;
  std::uint64_t failed_requests = 0;
  std::uint64_t sessions = 0;
};

/// One run. `verbose`: what both sides log goes to standard error.
[[nodiscard]] SimulationResult simulate(std::uint64_t seed, bool verbose);

class SessionWorld {
 public:
  SessionWorld(std::uint64_t seed, Logger& logger);
  ~SessionWorld();
  [[nodiscard]] SimulationResult run();

 private:
  static constexpr std::size_t kWorkers = 12;
  static constexpr std::size_t kQueues = 3;
  static constexpr std::size_t kWorkerBytes = 3 * kMiB / 2;  // more than MDTS: some requests are split

  /// One request at a time, with memory of its own.
  struct Worker {
    SessionWorld* world = nullptr;
    initiator::Request request{};
    std::span<std::byte> memory;
    std::array<iovec, 2> pieces{};
    std::size_t queue = 0;
    Lba first;
    std::uint64_t blocks = 0;
    std::uint64_t tag = 0;
    Moment began = 0;
    bool busy = false;
    BlockRange discarded;
  };

  void choose_faults();
  void disturb();
  [[nodiscard]] bool ensure_session(Instant deadline);
  [[nodiscard]] bool connect_once();
  void drop_session();
  bool submit(Worker& worker);
  [[nodiscard]] initiator::Submitted submit_chosen(Worker& worker, initiator::Operation operation);
  void finish(Worker& worker);
  void check_read(const Worker& worker);
  void work(std::uint64_t requests, Instant deadline, bool faults);
  void drain();
  void read_everything();
  void fail(std::string what);
  [[nodiscard]] bool failed() const noexcept { return !result_.failure.empty(); }
  [[nodiscard]] Instant now() { return network_.clock().now(); }
  void run(Duration time);

  std::uint64_t seed_;
  Logger& logger_;
  transport::sim::Network network_;
  Random random_;
  std::vector<std::unique_ptr<transport::Reactor>> target_reactors_;
  std::unique_ptr<target::Target> target_;
  std::unique_ptr<transport::Reactor> reactor_;
  Uri uri_;
  transport::SharedMemory arena_;
  std::unique_ptr<initiator::Session> session_;
  std::unique_ptr<initiator::RegisteredBuffer> registered_;
  std::array<std::unique_ptr<initiator::QueuePair>, kQueues> queues_;
  std::array<Worker, kWorkers> workers_{};
  std::optional<initiator::Namespace> space_;
  std::unique_ptr<BlockModel> model_;
  Moment moment_ = 1;
  std::uint64_t next_tag_ = 1;
  SimulationResult result_;
};

}  // namespace rbt::test
