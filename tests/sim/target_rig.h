#pragma once
// A target with a RAM namespace and a raw host, in one simulated world; and verbs for tests to act with.

#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/nvme/admin_command.h"
#include "common/nvme/io_command.h"
#include "common/nvme/properties.h"
#include "common/nvme/types.h"
#include "target/target.h"
#include "tests/sim/gated_store.h"
#include "tests/sim/raw_host.h"
#include "transport/sim/network.h"

namespace rbt::test {

inline constexpr const char* kSubsystem = "nqn.2024-01.example:disk";
inline constexpr const char* kHost = "nqn.2024-01.example:host";

[[nodiscard]] nvme::Nqn nqn(const std::string& text);

/// What the target says, for tests that expect it to.
class NotingLogger final : public Logger {
 public:
  NotingLogger() : Logger(LogLevel::info) {}
  [[nodiscard]] bool said(const std::string& text) const;
  std::vector<std::string> messages;

 protected:
  void write(LogLevel, std::string message) override { messages.push_back(std::move(message)); }
};

struct RigOptions {
  transport::sim::NetworkOptions network = {};
  target::TargetLimits limits = {};
  std::size_t reactors = 2;
  std::string store = "ram:size=16MiB";
  Gate* gate = nullptr;  ///< not null: the store waits behind it
  bool allow_any_host = true;
  std::vector<target::AllowedHost> allowed_hosts = {};
  /// What else is configured before the target starts.
  std::function<void(target::Target&)> configure = {};
};

/// An admin queue that is connected, and where its controller stands.
struct Association {
  RawQueue* admin = nullptr;
  Cntlid cntlid;
};

class TargetRig {
 public:
  explicit TargetRig(RigOptions options = {});
  /// Everything comes back: connections, controllers, buffers.
  ~TargetRig();

  [[nodiscard]] Uri address() const;
  [[nodiscard]] bool run_until(const std::function<bool()>& done, Duration within = std::chrono::seconds(10));
  void expect(const std::function<bool()>& done, const char* what);
  void run_for(Duration time) {
    static_cast<void>(run_until([] { return false; }, time));
  }

  // Connections. `…_up` expects the fabric's handshake to succeed.
  RawQueue& queue_up(Qid qid, std::uint32_t entries = 32, Cntlid cntlid = Cntlid(0));
  /// The reason of the refusal of a connection request with these bytes.
  [[nodiscard]] std::optional<nvme::CmReject> refusal(std::span<const std::byte> private_data,
                                                      std::uint32_t incoming_reads = 16);

  // Commands: sent, and their response awaited.
  Response execute(RawQueue& queue, const nvme::SubmissionQueueEntry& sqe, std::span<const std::byte> in_capsule = {});
  [[nodiscard]] nvme::ConnectRequest connect_request(Qid qid, Cntlid cntlid, std::uint32_t entries = 32) const;
  Response connect(RawQueue& queue, const nvme::ConnectRequest& request);
  /// Connect with any bytes as data.
  Response connect(RawQueue& queue, nvme::SubmissionQueueEntry sqe, std::span<const std::byte> data);
  [[nodiscard]] std::uint64_t get_property(RawQueue& admin, nvme::Property property);
  Response set_configuration(RawQueue& admin, nvme::Configuration configuration);
  static nvme::Configuration enabled() { return nvme::Configuration{}.with_enabled(true).with_entry_size_shifts(6, 4); }

  /// An admin queue with an enabled controller.
  Association associate(const std::string& subsystem = kSubsystem, std::chrono::milliseconds keep_alive = {});
  /// An I/O queue of it, connected.
  RawQueue& io_queue(const Association& association, Qid qid, std::uint32_t entries = 32,
                     const std::string& subsystem = kSubsystem);

  /// `sqe` with its data moved through host memory of `length` bytes, filled with `data` if there is any.
  Response transfer(RawQueue& queue, nvme::SubmissionQueueEntry sqe, HostMemory& memory, std::uint32_t length);
  [[nodiscard]] std::unique_ptr<HostMemory> memory(RawQueue& queue, std::size_t size);
  template <typename T>
  T read_structure(RawQueue& admin, const nvme::SubmissionQueueEntry& sqe) {
    auto memory_ = memory(admin, sizeof(T));
    const auto response = transfer(admin, sqe, *memory_, sizeof(T));
    require_ok(response);
    T structure;
    std::memcpy(&structure, memory_->bytes().data(), sizeof(T));
    return structure;
  }
  static void require_ok(const Response& response);

  transport::sim::Network network;
  NotingLogger logger;
  Random random{42};
  std::vector<std::unique_ptr<transport::Reactor>> target_reactors;
  std::unique_ptr<transport::Reactor> host_reactor;
  std::unique_ptr<target::Target> target;
  std::unique_ptr<RawHost> host;
  bool host_died = false;  ///< the dead close no connections
  /// What goes on beside whatever is waited for: called again and again.
  std::function<void()> meanwhile;
};

/// A store as the rig's own; its identity comes from `random`.
[[nodiscard]] std::unique_ptr<target::Store> make_ram_store(TargetRig& rig, Random& random);
/// `size` bytes that depend on `seed` and their place.
[[nodiscard]] std::vector<std::byte> some_bytes(std::size_t size, std::uint64_t seed);

}  // namespace rbt::test
