#pragma once
// Traffic whose every byte is checked: a server that moves data at a client's wish, as a target does, and the client.
// Used within one process and by the program shm_peer as the other process.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/random.h"
#include "transport/memory/registered_memory.h"
#include "transport/memory/shared_memory.h"
#include "transport/shm/fabric.h"

namespace rbt::test {

inline constexpr std::size_t kWorkloadSlot = 32 * 1024;
inline constexpr std::uint32_t kWorkloadDepth = 8;

/// What the client asks for: 64 bytes like a submission queue entry.
struct Command {
  enum class Kind : std::uint32_t {
    fetch,
    store
  };  ///< the server writes a pattern to the client; reads and checks one
  std::uint32_t slot = 0;
  Kind kind = Kind::fetch;
  std::uint64_t seed = 0;
  std::uint64_t address = 0;
  std::uint32_t rkey = 0;
  std::uint32_t length = 0;
  std::array<std::byte, 32> rest{};
};
struct Response {
  std::uint32_t slot = 0;
  std::uint32_t good = 0;
  std::uint64_t seed = 0;
};
static_assert(sizeof(Command) == 64 && sizeof(Response) == 16);

void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed) noexcept;
[[nodiscard]] bool is_pattern(std::span<const std::byte> bytes, std::uint64_t seed) noexcept;

/// Takes everybody. One thread: its reactor's.
class WorkloadServer final : public transport::CompletionHandler, public transport::ListenerHandler {
 public:
  WorkloadServer(transport::shm::Fabric& fabric, transport::Reactor& reactor);
  ~WorkloadServer() override;
  [[nodiscard]] Result<void> listen(const Uri& address, const transport::ListenOptions& options = {});

  void on_completions(std::span<const transport::Completion> batch) override;
  void on_request(std::unique_ptr<transport::ConnectionRequest> request) override;
  void on_listener_failed(const Error&) override {}

  void close_all();
  [[nodiscard]] transport::PollGroup& group() noexcept { return *group_; }
  std::uint64_t served = 0;
  std::uint64_t corrupt = 0;  // a store whose data was not what the client had said
  std::uint64_t ended = 0;    // connections that ended by themselves
  std::uint64_t refused_commands = 0;
  Instant last_end{};
  std::string last_error;
  std::optional<transport::Disconnect::Reason> last_reason;

 private:
  class Session;
  transport::shm::Fabric& fabric_;
  transport::Reactor& reactor_;
  std::unique_ptr<transport::PollGroup> group_;
  std::unique_ptr<transport::Listener> listener_;
  std::vector<std::unique_ptr<Session>> sessions_;
};

/// Keeps kWorkloadDepth commands in flight and checks what comes back. One thread: its reactor's.
class WorkloadClient final : public transport::CompletionHandler, public transport::ConnectionHandler {
 public:
  WorkloadClient(transport::shm::Fabric& fabric, transport::Reactor& reactor, std::uint64_t seed);
  ~WorkloadClient() override;
  [[nodiscard]] Result<void> connect(const Uri& address);
  void close();

  void on_completions(std::span<const transport::Completion> batch) override;
  void on_established(std::span<const std::byte>) override;
  void on_disconnected(const transport::Disconnect& disconnect) override;
  void on_closed() override;

  bool established = false;
  bool closed = true;
  std::uint64_t completed = 0;
  std::uint64_t corrupt = 0;
  std::optional<transport::Disconnect::Reason> disconnected;
  std::string error;
  Instant disconnected_at{};
  [[nodiscard]] transport::PollGroup& group() noexcept { return *group_; }
  /// What the server may write to.
  [[nodiscard]] std::span<const std::byte> memory() const noexcept { return {memory_.data(), memory_.size()}; }

 private:
  void submit(std::uint32_t slot);
  void on_response(const Response& response);
  [[nodiscard]] std::span<std::byte> slot_bytes(std::uint32_t slot);

  transport::Reactor& reactor_;
  Random random_;
  transport::SharedMemory memory_;
  std::unique_ptr<transport::MemoryRegion> region_;
  std::unique_ptr<transport::PollGroup> group_;
  transport::Connection* connection_ = nullptr;
  std::array<Command, kWorkloadDepth> commands_{};
};

}  // namespace rbt::test
