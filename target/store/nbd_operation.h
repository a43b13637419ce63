#pragma once
// A command for an NBD server, and how it gets to the reactor that has the connection.

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "common/clock.h"
#include "common/result.h"
#include "target/store/store_request.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

class NbdClient;

/// Intrusive: it lives in the request it belongs to. Cut into pieces that the server takes.
struct NbdOperation {
  enum class Kind : std::uint8_t { read, write, zero, trim, flush };
  NbdOperation* next = nullptr;
  NbdClient* client = nullptr;
  std::byte* data = nullptr;  ///< read, write
  std::uint64_t offset = 0;   ///< bytes
  std::uint64_t length = 0;   ///< bytes; 0 for flush
  std::uint64_t begun = 0;    ///< bytes that have been asked for: the link's
  Instant waits_since{};      ///< when its client was asked for it; from a loss of the server on, the link's
  std::uint16_t pieces = 0;   ///< asked for and not answered: the link's
  std::int16_t error = 0;     ///< how it ended: 0 or an errno
  Kind kind = Kind::read;
  bool fua = false;
  bool may_trim = false;  ///< zero: the space may be given back
  bool repeats = false;   ///< write: `data` is one piece of kRepeatMax bytes, for all of the range
  bool away = false;      ///< handed to another reactor: its client's
  bool complete = false;  ///< all of it has been asked for: the link's
  static constexpr std::uint64_t kRepeatMax = std::uint64_t{1} << 20;
};

/// Told what became of an operation, in `error`: as the server says, or
///   ETIMEDOUT  no server for as long as the store waits
///   ERANGE     the export ends before the range
///   ENOTCONN   the link is no more: submit it again
class NbdClient {
 public:
  virtual ~NbdClient() = default;
  /// On the thread of the link.
  virtual void on_nbd_done(NbdOperation& operation) = 0;
};

/// Operations from other reactors. The reader's side belongs to its reactor's thread.
class NbdInbox {
 public:
  explicit NbdInbox(transport::Reactor& reactor) : reactor_(reactor) {}
  ~NbdInbox();
  NbdInbox(const NbdInbox&) = delete;
  NbdInbox& operator=(const NbdInbox&) = delete;

  /// `woken` is called when something came while the reader slept, or at any other time.
  [[nodiscard]] Result<void> open(std::function<void()> woken);
  /// Any thread.
  void put(NbdOperation& operation);
  /// Everything that is there, behind what is in `into`. Costs one load if there is nothing.
  void take(RecordQueue<NbdOperation>& into);
  /// As transport::Source. False: something is there.
  [[nodiscard]] bool arm();

 private:
  transport::Reactor& reactor_;
  int event_fd_ = -1;
  std::atomic<bool> filled_{false};  // set under the mutex by put(), so that take() need not look when it is false
  std::mutex mutex_;                 // guards the two below
  RecordQueue<NbdOperation> operations_;
  bool asleep_ = false;
};

}  // namespace rbt::target
