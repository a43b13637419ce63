#pragma once
// A simulated world: machines, the network between them, and time. Deterministic: one thread, one seed, a clock that
// stands still until the world moves. The same seed and the same program give the same run, event for event.
//
//   sim::Network network({.seed = 7});
//   auto& target_side = network.fabric("target");        // nvme+sim://target:4420/…
//   auto& host_side = network.fabric("host");
//   auto reactor = Reactor::create(network.clock(), logger, {.waiter = &network});
//
// Every reactor that opens a poll group takes part. When one of them has nothing to do inside run() or run_until(), the
// world moves: the others get their turn, then the next event happens, then time goes on to the next timer. So a caller
// of a synchronous-looking function drives both ends.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "transport/fabric.h"
#include "transport/sim/faults.h"

namespace rbt::transport::sim {

struct NetworkOptions {
  static constexpr std::uint32_t kRetryForever = 7;  ///< as rnr_retry_count, IBA 9.7.5.2.8

  std::uint64_t seed = 1;
  Link link{};                    ///< unless Faults::set_link() says otherwise
  std::uint32_t path_mtu = 4096;  ///< bytes that land at once; a transfer can be torn between them
  std::uint32_t send_depth_max = 16384;
  std::uint32_t read_depth_max = 16;  ///< RDMA READs a device starts or serves at a time, per connection
  std::uint32_t segments_max = 16;    ///< at most 16
  std::uint32_t inline_max = 256;     ///< at most 256
  std::uint64_t message_max = std::uint64_t{1} << 30;
  Duration ack_timeout = std::chrono::milliseconds(67);  ///< 4.096 us << 14
  std::uint32_t retries = 6;                             ///< then retry_exceeded: a dead peer is noticed after 0.47 s
  Duration rnr_timer = std::chrono::microseconds(640);
  std::uint32_t rnr_retries = kRetryForever;
  Duration close_delay_max = std::chrono::milliseconds(1);  ///< close() to on_closed(), by chance
  std::uint32_t in_capsule_data = 4096;
  /// Reports SEND and RDMA WRITE data that changed between post() and completion (violations()). Costs two passes
  /// over the data. Only for consumers that never share such memory with other writers.
  bool check_posted_memory = false;
  /// Once in n, a connection that failed says so by its completions only, as over rxe; 0: on_disconnected() follows.
  std::uint64_t silent_failure = 0;
};

/// One simulated world. Single-threaded: unlike other fabrics, nothing in it may be called from a second thread.
class Network final : public Waiter {
 public:
  explicit Network(const NetworkOptions& options = {}, Logger& logger = null_logger());
  /// Poll groups and memory regions must be gone.
  ~Network() override;
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  /// The machine of this name, made at the first call with `devices` RDMA devices (and protection domains). Address
  /// NAME is its first device (for a listener: all of them), NAME.1 the second one, and so on. Lives as long as the
  /// Network.
  [[nodiscard]] Fabric& fabric(std::string_view name, std::uint32_t devices = 1);

  [[nodiscard]] ManualClock& clock() noexcept;
  /// For the test's own choices; the world draws from others, so using it does not disturb what the network does.
  [[nodiscard]] Random& random() noexcept;
  [[nodiscard]] Faults& faults() noexcept;
  [[nodiscard]] const NetworkOptions& options() const noexcept;

  /// Lets a reactor without poll group take part.
  void add(Reactor& reactor);
  void remove(Reactor& reactor);
  /// Calls `action` at `at`, from within the network: for faults in the middle of something.
  void at(Instant at, std::function<void()> action);

  enum class Outcome : std::uint8_t {
    done,      ///< the condition holds
    deadline,  ///< virtual time ran out
    stuck,     ///< it never will: no event, no timer, nobody has anything to do
  };
  /// Turns all reactors and moves time until `done` or `deadline`.
  [[nodiscard]] Outcome run_until(const std::function<bool()>& done, Instant deadline);
  /// The same, for at most `time` from now.
  [[nodiscard]] Outcome run_for(Duration time, const std::function<bool()>& done = {});
  /// One round of everybody's work or, if there is none, the next event. False: there was neither. Does not run to timers.
  bool step();
  /// step() until there is nothing left but timers of reactors. False: still busy after `steps_max` steps.
  bool settle(std::uint64_t steps_max = 10'000'000);

  /// Waiter: moves the world once on behalf of `reactor`. With nothing left to happen and no timer anywhere it logs an
  /// error and stops `reactor`, so that run() and run_until() return.
  void wait(Reactor& reactor, std::optional<Instant> until) override;

  /// FNV-1a over everything that happened, with its virtual time: equal hashes, equal runs.
  [[nodiscard]] std::uint64_t trace_hash() const noexcept;
  [[nodiscard]] std::uint64_t events() const noexcept;      ///< traced so far
  [[nodiscard]] std::uint64_t violations() const noexcept;  ///< found by check_posted_memory
  [[nodiscard]] std::uint64_t deadlocks() const noexcept;   ///< reported by wait()

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace rbt::transport::sim
