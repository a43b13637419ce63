#pragma once
// Those who knock at a socket file.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/log.h"
#include "transport/connection.h"
#include "transport/reactor/reactor.h"
#include "transport/shm/address.h"
#include "transport/shm/message.h"
#include "transport/shm/ring.h"

namespace rbt::transport::shm {

/// A peer that has said hello and waits for an answer. One thread at a time.
class Knock final : public ConnectionRequest {
 public:
  struct Taken {
    Descriptor socket;
    std::shared_ptr<RingMemory> ring;
    std::uint32_t receive_size = 0;
    bool trusted = false;
  };
  Knock(Taken parts, const HelloMessage& hello, std::string peer, std::shared_ptr<std::atomic<int>> unanswered);
  ~Knock() override;

  [[nodiscard]] std::span<const std::byte> private_data() const noexcept override {
    return std::span<const std::byte>(private_data_).first(private_size_);
  }
  [[nodiscard]] const std::string& peer() const noexcept override { return peer_; }
  /// The user: processes are made more easily than counted.
  [[nodiscard]] std::string peer_host() const override;
  [[nodiscard]] std::uint32_t peer_incoming_reads() const noexcept override { return incoming_reads_; }
  void reject(std::span<const std::byte> private_data) override;
  /// The acceptor takes over; nothing is said to the peer by this object any more.
  [[nodiscard]] Taken take();

 private:
  void answered() noexcept;
  Taken parts_;
  std::array<std::byte, 64> private_data_;
  std::size_t private_size_;
  std::uint32_t incoming_reads_;
  std::string peer_;
  std::shared_ptr<std::atomic<int>> unanswered_;  // shared with the listener, which may be gone first
};

/// One thread: its reactor's.
class SocketListener final : public Listener {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Listener>> open(Reactor& reactor, const Uri& address,
                                                              const AccessPolicy& otherwise,
                                                              const ListenOptions& options, ListenerHandler& handler);
  ~SocketListener() override;
  [[nodiscard]] std::string address() const override;

 private:
  struct Guest;
  SocketListener(Reactor& reactor, BoundSocket socket, const AccessPolicy& policy, const ListenOptions& options,
                 ListenerHandler& handler);
  [[nodiscard]] Result<void> watch();
  void on_knock();
  void admit(Descriptor socket);
  void on_guest(Guest& guest);
  void on_silence();
  void drop(Guest& guest);
  void turn_away(int socket, Refusal reason, const std::string& peer, std::string_view why);

  Reactor& reactor_;
  BoundSocket socket_;
  const AccessPolicy policy_;
  const ListenOptions options_;
  ListenerHandler& handler_;
  std::vector<std::unique_ptr<Guest>> guests_;  // accepted, and have not said hello yet
  std::shared_ptr<std::atomic<int>> unanswered_ = std::make_shared<std::atomic<int>>(0);
  Timer silence_;  // armed for the first guest's deadline, if there is one
  Timer resume_;   // out of descriptors: tries again later
  RateLimit complaints_{std::chrono::seconds(1)};
};

}  // namespace rbt::transport::shm
