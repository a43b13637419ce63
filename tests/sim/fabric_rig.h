#pragma once
// Two sides of a fabric that write down everything they hear, and verbs for tests to act with.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/fabric_contract.h"
#include "transport/memory/shared_memory.h"

namespace rbt::test {

using Bytes8 = std::vector<std::byte>;

/// `size` bytes that depend on `seed` and their place.
[[nodiscard]] Bytes8 pattern(std::size_t size, std::uint64_t seed);

/// Registered memory, shareable with another process.
class Buffer {
 public:
  Buffer(transport::ProtectionDomain& domain, std::size_t size, transport::RemoteAccess access);
  [[nodiscard]] std::byte* data() const noexcept { return memory_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::uint64_t address() const noexcept { return reinterpret_cast<std::uintptr_t>(data()); }
  [[nodiscard]] std::uint32_t lkey() const { return region_->lkey(); }
  [[nodiscard]] std::uint32_t rkey() const { return region_->rkey(); }
  [[nodiscard]] transport::Segment segment(std::size_t offset, std::size_t length) const;
  void fill(const Bytes8& bytes, std::size_t offset = 0);
  [[nodiscard]] Bytes8 bytes(std::size_t offset, std::size_t length) const;
  void deregister() { region_.reset(); }

 private:
  transport::SharedMemory memory_;
  std::size_t size_;
  std::unique_ptr<transport::MemoryRegion> region_;
};

/// One end of a connection and all that it heard.
class End final : public transport::ConnectionHandler {
 public:
  struct Done {
    transport::Completion::Type type;
    transport::CompletionStatus status;
    std::uint64_t wr_id;
  };
  struct Message {
    Bytes8 bytes;
    std::optional<std::uint32_t> invalidated;
  };
  void on_established(std::span<const std::byte> private_data) override;
  void on_disconnected(const transport::Disconnect& disconnect) override;
  void on_closed() override;
  void on_completion(const transport::Completion& completion);

  // Verbs. post_* expect `posted` and need their memory until the completion.
  void post_send(const Buffer& buffer, std::size_t offset, std::size_t length, std::uint64_t wr_id = 0);
  void post_write(const Buffer& from, const Buffer& to, std::size_t length, std::uint64_t wr_id = 0);
  void post_read(const Buffer& to, const Buffer& from, std::size_t length, std::uint64_t wr_id = 0);
  /// Statuses of completions other than receives.
  [[nodiscard]] std::size_t completed() const noexcept { return done.size(); }
  [[nodiscard]] bool healthy() const noexcept { return established && !disconnected && !closed && !failed; }

  transport::Connection* connection = nullptr;  // null after on_closed()
  bool established = false;
  bool closed = false;
  bool failed = false;  // a completion said so
  std::optional<transport::Disconnect::Reason> disconnected;
  Bytes8 private_data;  // of on_established or on_disconnected
  std::vector<Done> done;
  std::vector<Message> messages;
  std::vector<std::string> mistakes;  // of the fabric: what it must never do
  std::function<void(const transport::Completion&)> on_any;
  std::function<void()> when_established;
  std::function<void()> when_disconnected;
};

/// For connecting and accepting: the connection manager repeats what was lost after 4.3 s (rdma_cm's 20), and an emulated machine that has
/// little time was seen to lose several in a row.
inline constexpr Duration kPatience = std::chrono::seconds(60);

/// One machine's share: a poll group, maybe a listener, its ends.
class Side final : public transport::CompletionHandler, public transport::ListenerHandler {
 public:
  Side(transport::Fabric& fabric, transport::Reactor& reactor, const transport::PollGroupOptions& options);
  ~Side() override;
  void on_completions(std::span<const transport::Completion> batch) override;
  void on_request(std::unique_ptr<transport::ConnectionRequest> request) override;
  void on_listener_failed(const Error& error) override { listener_error = error.message(); }

  void listen(const Uri& address, const transport::ListenOptions& options = {});
  End& connect(const Uri& address, const transport::ConnectOptions& options = {.timeout = kPatience});
  /// The oldest request waiting.
  End& accept(const transport::AcceptOptions& options = {.timeout = kPatience});
  void release_held();

  std::unique_ptr<transport::PollGroup> group;
  std::unique_ptr<transport::Listener> listener;
  std::vector<std::unique_ptr<transport::ConnectionRequest>> requests;
  std::vector<std::unique_ptr<End>> ends;
  bool accepts = false;  // every request, at once
  bool hold_receives = false;
  std::vector<std::uint32_t> held;
  std::string listener_error;
};

/// Server and client over a fabric. Its destructor closes everything and expects the fabric to let go of it.
class Rig {
 public:
  explicit Rig(FabricUnderTest& fabric,
               const transport::PollGroupOptions& options = {.receive_depth = 64, .receive_size = 4160});
  ~Rig();
  struct Pair {
    End& client;
    End& server;
  };
  /// A connection, established on both sides.
  [[nodiscard]] Pair connect(const transport::ConnectOptions& connecting = {.timeout = kPatience},
                             const transport::AcceptOptions& accepting = {.timeout = kPatience});
  /// A message goes each way and arrives.
  void expect_working(const Pair& pair);
  [[nodiscard]] bool run_until(const std::function<bool()>& done) { return fabric_.run_until(done); }
  void run_a_while() { fabric_.run_a_while(); }
  /// Fails the test unless it happens.
  void expect(const std::function<bool()>& done, const char* what);

 private:
  FabricUnderTest& fabric_;

 public:
  Side server;
  Side client;
};

}  // namespace rbt::test
