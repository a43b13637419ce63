#pragma once
// The kernel's NBD client (drivers/block/nbd.c), told what to do over generic netlink (linux/nbd-netlink.h).

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "common/units.h"

namespace rbt::initiator::nbd {

/// What a device is connected with, or what of it changes: only what is given.
struct Settings {
  std::optional<std::uint32_t> number{};  ///< none, with connect(): the first free one, or a new one
  std::optional<Bytes> size{};
  std::uint32_t block_size = 0;                            ///< 0: not given
  std::uint64_t flags = 0;                                 ///< NBD's transmission flags; connect() only
  std::optional<std::chrono::seconds> timeout{};           ///< of a request; 0: none
  std::optional<std::chrono::seconds> dead_connections{};  ///< how long requests wait when no connection is left
  std::string identifier{};                                ///< must be the same in reconfigure()
  std::span<const int> sockets{};                          ///< descriptors of this process; the kernel takes its own
};

/// One conversation. Any thread, one at a time. Each call returns when the kernel has done it, which can be never: it waits for
/// requests of the device (connect() does not). Errors: unsupported (module not loaded), permission (CAP_SYS_ADMIN),
/// what the kernel said.
class Netlink {
 public:
  [[nodiscard]] static Result<Netlink> open();
  Netlink(Netlink&& other) noexcept;
  Netlink& operator=(Netlink&&) = delete;
  ~Netlink();

  /// The device's number. The kernel notes the calling thread as its owner (/sys/block/nbdN/pid).
  [[nodiscard]] Result<std::uint32_t> connect(const Settings& settings);
  /// Sockets replace dead ones; those that find none to replace are silently left alone.
  [[nodiscard]] Result<void> reconfigure(const Settings& settings);
  /// Requests that it has fail. It is gone when the last who has it open has closed it.
  [[nodiscard]] Result<void> disconnect(std::uint32_t number);
  /// Whether it is connected, or still open. Error: not_found.
  [[nodiscard]] Result<bool> connected(std::uint32_t number);

 private:
  class Message;
  explicit Netlink(int fd) noexcept : fd_(fd) {}
  [[nodiscard]] Result<std::uint32_t> configure(std::uint8_t command, const Settings& settings, std::string what);
  /// Sends it and hands every attribute of the answers, also those within others, to `on_attribute`.
  template <typename OnAttribute>
  [[nodiscard]] int ask(Message& message, OnAttribute on_attribute);
  int fd_ = -1;
  std::uint16_t family_ = 0;
  std::uint32_t sequence_ = 0;
};

}  // namespace rbt::initiator::nbd
