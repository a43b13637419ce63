#pragma once
// A connection to an NBD server, made on a thread of its own: looking up a name, connecting and the handshake all take
// as long as others like. The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "common/clock.h"
#include "common/result.h"
#include "transport/reactor/reactor.h"

struct nbd_handle;

namespace rbt::target {

/// What the server said of the export.
struct NbdExport {
  std::uint64_t size = 0;  ///< bytes
  bool read_only = false;
  bool can_flush = false;
  bool can_fua = false;
  bool can_trim = false;
  bool can_zero = false;
  bool can_multi_conn = false;      ///< what one connection has flushed is flushed for all (NBD_FLAG_CAN_MULTI_CONN)
  bool structured_replies = false;  ///< holes need no transfer
  std::uint64_t block_min = 1;      ///< bytes, a power of two: what requests are multiples of
  std::uint64_t block_preferred = 4096;
  std::uint64_t block_max = 0;  ///< bytes of data in one request
};

struct NbdCloser {
  void operator()(nbd_handle* handle) const noexcept;
};
using NbdHandle = std::unique_ptr<nbd_handle, NbdCloser>;

/// Ready for commands.
struct NbdConnected {
  NbdHandle handle;
  NbdExport about;
};

/// Connects and shakes hands; waits, until `stop_fd` (-1: none) is readable or `patience` is over. Any thread. The error
/// is libnbd's own, with what to do about it where that is known.
[[nodiscard]] Result<NbdConnected> nbd_connect(const std::string& uri, Duration patience, int stop_fd);

/// Connects on a thread, one attempt at a time. Belongs to its reactor's thread.
class NbdConnector {
 public:
  using Done = std::function<void(Result<NbdConnected>)>;
  NbdConnector(transport::Reactor& reactor, std::string uri, Duration patience);
  /// Waits for the thread, which stops at once unless it is looking up a name: then when the resolver gives up.
  ~NbdConnector();
  NbdConnector(const NbdConnector&) = delete;
  NbdConnector& operator=(const NbdConnector&) = delete;

  [[nodiscard]] Result<void> open();
  /// `done` is called once, on the reactor's thread, never from in here.
  void start(Done done);

 private:
  void on_readable();

  transport::Reactor& reactor_;
  std::string uri_;
  Duration patience_;
  int done_fd_ = -1;  // readable: the thread has left its result
  int stop_fd_ = -1;  // readable: the thread is to stop
  std::thread thread_;
  std::optional<Result<NbdConnected>> result_;  // the thread's until done_fd_ is readable, then the reactor's
  Done done_;
};

}  // namespace rbt::target
