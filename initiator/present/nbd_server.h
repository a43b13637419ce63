#pragma once
// A volume for those who speak NBD: over sockets of a pair whose other end is the kernel's, and for any client on a Unix
// socket. docs/block_devices_nbd.md has what is answered how.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "common/result.h"
#include "common/units.h"
#include "initiator/volume.h"
#include "transport/reactor/reactor.h"

namespace rbt::initiator {

struct NbdServerOptions {
  std::uint32_t connections_max = 16;  ///< 1 to 64; who comes later is hung up on
  std::uint32_t requests = 256;        ///< in flight at a time: no more than the volume was opened with
  bool read_only = false;              ///< in any case if the namespace is
  /// A connection of adopt() or of a client has ended. From within a turn of the reactor; must not call into the server.
  /// `asked`: the client said that it disconnects.
  std::function<void(bool asked)> on_end{};
};

/// Serves until it is destroyed, whenever the volume's reactor is turned; the volume's progress() is its owner's business. While
/// the volume has no path, requests wait. Bytes of data in one request: 2 MiB at most, which clients that ask are told; more is
/// refused with EINVAL. All of the volume's buffers are the server's: each connection has its share, and cannot have more. The reactor's thread.
/// No allocation per request.
class NbdServer {
 public:
  /// Of QueuePairOptions::buffers, at least: 2 MiB for every connection.
  [[nodiscard]] static constexpr Bytes buffers_min(std::uint32_t connections) noexcept {
    return Bytes(connections * 2 * kMiB);
  }
  /// Error: invalid_argument (numbers out of range; the volume has no buffers, or too few).
  [[nodiscard]] static Result<std::unique_ptr<NbdServer>> create(Volume& volume, transport::Reactor& reactor,
                                                                 const NbdServerOptions& options);
  /// Hangs up on everybody. Requests that are with the volume end there, and nobody is told.
  ~NbdServer();
  NbdServer(const NbdServer&) = delete;
  NbdServer& operator=(const NbdServer&) = delete;

  /// Serves a client that needs no handshake. Takes the descriptor, whatever happens.
  [[nodiscard]] Result<void> adopt(int fd);
  /// Serves whoever connects to the Unix socket `path`, which is made with mode 0600 and removed by the destructor; an old
  /// one that nobody listens on is replaced. Once. Errors: in_use, those of the system.
  [[nodiscard]] Result<void> listen(const std::string& path);

  [[nodiscard]] std::uint16_t flags() const noexcept;        ///< NBD's transmission flags
  [[nodiscard]] std::uint32_t connections() const noexcept;  ///< that there are
  [[nodiscard]] Bytes buffers_in_use() const noexcept;
  [[nodiscard]] std::uint64_t requests_begun() const noexcept;  ///< ever

 private:
  class Implementation;
  explicit NbdServer(std::unique_ptr<Implementation> implementation) noexcept;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace rbt::initiator
