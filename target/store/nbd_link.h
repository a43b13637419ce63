#pragma once
// One connection to an NBD server, which comes back by itself.

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "common/log.h"
#include "common/result.h"
#include "target/store/nbd_handshake.h"
#include "target/store/nbd_operation.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

/// What all links of a store have in common. Thread-safe.
class NbdServer {
 public:
  virtual ~NbdServer() = default;
  [[nodiscard]] virtual const std::string& spec() const noexcept = 0;
  [[nodiscard]] virtual const std::string& uri() const noexcept = 0;
  /// How long operations wait for a server that is away.
  [[nodiscard]] virtual Duration patience() const noexcept = 0;
  [[nodiscard]] virtual Logger& logger() const noexcept = 0;
  /// The connection over which the store was opened, for the first who asks.
  [[nodiscard]] virtual NbdConnected take_first() = 0;
  /// A link has shaken hands again. Error: this is not the export that it was; the link tries again later.
  [[nodiscard]] virtual Result<void> admit(const NbdExport& about) = 0;
  /// A link has lost its connection.
  virtual void on_lost() noexcept = 0;
};

/// Owned by its reactor's thread. What is under way when the connection goes is sent again over the next one: all of it
/// can be done twice. What waits for a server, waits as long as its patience lasts, and fails with ETIMEDOUT then.
class NbdLink final : private transport::Source {
 public:
  enum class State : std::uint8_t {
    up,          ///< commands go out; woken by the socket
    connecting,  ///< a thread connects and shakes hands; woken when it is done
    down,        ///< waits before it tries again; woken by the timer
  };
  enum class Sharing : std::uint8_t { none, other_reactors };

  [[nodiscard]] static Result<std::unique_ptr<NbdLink>> open(NbdServer& server, transport::Reactor& reactor,
                                                             Sharing sharing);
  /// Whatever is here still belongs to others and goes back to them with ENOTCONN.
  ~NbdLink() override;

  /// `operation` as its client has filled it. Its client hears of it later, from poll().
  void submit(NbdOperation& operation);
  /// Any thread, with Sharing::other_reactors: submits from elsewhere.
  void submit_from_elsewhere(NbdOperation& operation) { inbox_.put(operation); }

 private:
  static constexpr std::size_t kSlots = 64;  // commands under way: enough for a socket (more only wait in it)
  struct Slot {
    NbdLink* link = nullptr;
    NbdOperation* operation = nullptr;  // null: free
    Slot* next_free = nullptr;
  };
  using Operations = RecordQueue<NbdOperation>;

  NbdLink(NbdServer& server, transport::Reactor& reactor, Sharing sharing);
  [[nodiscard]] Result<void> start();

  // Source.
  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  [[nodiscard]] bool idle() const noexcept;
  void want_turn();
  void set_interest();

  // Commands.
  std::size_t issue();
  [[nodiscard]] bool issue_piece(NbdOperation& operation);
  std::int64_t send(Slot& slot, std::uint64_t bytes);
  std::size_t receive();
  void on_reply(Slot& slot, int error);
  static int on_command(void* slot, int* error);
  void end(NbdOperation& operation, int error);
  [[nodiscard]] bool connection_ended() const;

  // Losing the server and finding it again.
  void lost(const std::string& why);
  [[nodiscard]] std::size_t take_back();
  void wait_to_retry();
  void connect();
  void on_connected(Result<NbdConnected> connected);
  void adopt(NbdConnected connected);
  void start_waiting(NbdOperation& operation, Instant since);
  void on_patience_over();
  void watch_silence();
  void on_silence();

  NbdServer& server_;
  transport::Reactor& reactor_;
  const Sharing sharing_;
  NbdInbox inbox_;
  NbdConnector connector_;
  State state_ = State::down;
  NbdHandle handle_;  // null unless up
  NbdExport about_;
  int epoll_fd_ = -1;           // watches the connection, whatever its descriptor is, for what is of interest
  std::uint32_t interest_ = 0;  // epoll events
  bool listed_ = false;         // a source of the reactor
  bool leaving_ = false;        // the server has said that it shuts down
  Operations waiting_;          // to be asked for; the first one perhaps in part
  Operations done_;             // to be told, from poll()
  std::array<Slot, kSlots> slots_;
  Slot* free_ = nullptr;
  std::size_t under_way_ = 0;  // slots in use
  std::size_t replies_ = 0;
  Duration backoff_{};
  std::size_t replies_before_ = 0;  // when it came up
  Instant up_since_{};
  Instant away_since_{};
  bool complained_ = false;  // the log has heard that the server is away
  transport::Timer retry_timer_;
  transport::Timer patience_timer_;
  Instant patience_over_{};  // while it is armed
  // A server that lives and does not answer is waited for, as a disk is; but the log hears of it.
  transport::Timer silence_timer_;
  std::size_t replies_watched_ = 0;  // when it was armed
  bool silent_ = false;              // the log has heard
  RateLimit log_limit_;
};

}  // namespace rbt::target
