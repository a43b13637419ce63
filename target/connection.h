#pragma once
// One queue pair of a host: an admin queue or an I/O queue.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/nvme/capsule.h"
#include "common/nvme/connect_private_data.h"
#include "common/units.h"
#include "target/command.h"
#include "target/controller.h"
#include "target/credits.h"
#include "target/host_table.h"
#include "target/port.h"
#include "transport/fabric.h"
#include "transport/reactor/timer.h"

namespace rbt::target {

class Authentication;
class FabricGroup;
class ReactorContext;

/// Commands in order of arrival; a command is in one list at most.
class CommandList {
 public:
  [[nodiscard]] bool empty() const noexcept { return head_ == nullptr; }
  [[nodiscard]] Command* front() const noexcept { return head_; }
  void push_back(Command& command) noexcept;
  Command* pop_front() noexcept;
  /// It is in the list.
  void remove(Command& command) noexcept;

 private:
  Command* head_ = nullptr;
  Command* tail_ = nullptr;
};

/// What the host agreed to with Connect.
struct QueueTerms {
  Qid qid;
  std::uint32_t entries = 0;
  bool flow_control = true;  ///< false: SQHD is FFFFh in every completion
};

enum class ConnectionState : std::uint8_t {
  accepting,  ///< The fabric is completing the handshake. Woken by on_established() or on_disconnected().
  waiting,    ///< Established, no Connect yet. Woken by a capsule, or closed when the half-open time is over.
  live,       ///< Belongs to a controller. Woken by capsules and completions.
  closing,    ///< close() was called: nothing is posted any more. Woken by on_closed().
  closed,     ///< The fabric has let go. Woken by store operations that are still on their way; then gone.
};

/// Belongs to one reactor for life. Sized at accept: no allocation per command.
class Connection final : public transport::ConnectionHandler {
 public:
  /// Errors: `resource`. Then the request can still be rejected.
  [[nodiscard]] static Result<std::unique_ptr<Connection>> create(ReactorContext& reactor, FabricGroup& fabric,
                                                                  const Port& port, std::uint64_t id,
                                                                  const nvme::CmRequest& wanted, std::string peer,
                                                                  HostTable::Admission admission);
  ~Connection() override;
  /// The fabric took it: `connection` carries it from now on.
  [[nodiscard]] Result<void> attach(transport::Connection& connection);

  void on_established(std::span<const std::byte> private_data) override;
  void on_disconnected(const transport::Disconnect& disconnect) override;
  void on_closed() override;
  void on_completion(const transport::Completion& completion);

  /// Ends it, for `reason` (logged by the caller if it is a failure). Any number of times. No callback comes before it
  /// returns. A controller whose admin queue ends loses its other queues, too.
  void close() noexcept;
  /// As close(), after a warning that says who, what and why.
  void fail(std::string_view reason);
  /// Nothing in flight but held Asynchronous Event Requests.
  [[nodiscard]] bool quiet() const noexcept;

  // For its commands.
  [[nodiscard]] ReactorContext& reactor() const noexcept { return reactor_; }
  [[nodiscard]] FabricGroup& fabric() const noexcept { return fabric_; }
  /// That it came through.
  [[nodiscard]] const Port& port() const noexcept { return port_; }
  [[nodiscard]] const transport::ConnectionLimits& limits() const noexcept { return transport_->limits(); }
  [[nodiscard]] transport::ProtectionDomain& domain() const noexcept { return transport_->domain(); }
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] const nvme::CmRequest& wanted() const noexcept { return wanted_; }
  /// Null before Connect.
  [[nodiscard]] Controller* controller() const noexcept { return controller_; }
  [[nodiscard]] bool ended() const noexcept {
    return state_ == ConnectionState::closing || state_ == ConnectionState::closed;
  }
  /// lkey of the reactor's buffers for this connection.
  [[nodiscard]] std::uint32_t buffers_lkey() const noexcept { return buffers_lkey_; }
  [[nodiscard]] std::uint32_t side_buffers_lkey() const noexcept { return side_buffers_lkey_; }
  /// Connect succeeded.
  void join(Controller& controller, const QueueTerms& terms);
  /// The host is who it says, as far as it has to prove that. True before Connect.
  [[nodiscard]] bool authenticated() const noexcept { return authenticated_; }
  /// Null: it need not.
  [[nodiscard]] Authentication* authentication() const noexcept { return authentication_.get(); }
  /// It got further, or failed.
  void note_authentication();
  [[nodiscard]] const QueueTerms& terms() const noexcept { return terms_; }
  /// After join().
  [[nodiscard]] const NamespaceView& namespaces() const noexcept { return namespaces_; }
  /// transport::Connection::local_host(); empty after the end.
  [[nodiscard]] std::string local_host() const { return transport_ != nullptr ? transport_->local_host() : ""; }
  /// "host nqn.… cntlid 1 qid 0 at 10.0.0.2:51312".
  [[nodiscard]] std::string who() const;

  /// True if `cid` was free; then it is the caller's until give_cid().
  [[nodiscard]] bool take_cid(Cid cid) noexcept;
  void give_cid(Cid cid) noexcept;
  void release_receive(std::uint32_t buffer_id) noexcept;
  /// What the next response says in SQHD.
  [[nodiscard]] std::uint16_t next_head() const noexcept;
  /// A response has been posted: the host may send one more command.
  void count_response() noexcept;

  /// Get in line for credits; served before the call returns if there are some.
  void request_read_credit(Command& command);
  void request_send_credit(Command& command);
  void cancel_read_credit(Command& command) noexcept { awaiting_read_.remove(command); }
  /// Abort: true, the command of that CID is not carried out; it is answered so, now or when what it waits for lets it go.
  [[nodiscard]] bool abort(Cid cid);
  [[nodiscard]] std::uint32_t read_credits() const noexcept;
  [[nodiscard]] std::uint32_t send_credits() const noexcept { return send_credits_.free(); }
  /// Takes the credits. `command` hears of the last request's completion, which is signaled here.
  /// False: nothing was posted, because the fabric is full or the connection dead.
  [[nodiscard]] bool post(Command& command, Batch& batch, std::uint32_t reads);
  /// Credits of requests that will never complete.
  void return_credits(std::uint32_t sends, std::uint32_t reads) noexcept;
  /// `command` is free again.
  void reuse(Command& command);
  // Fused pairs.
  /// What the next command of this queue finds before it: it is told once.
  [[nodiscard]] FusedFirst take_first() noexcept;
  void await_second(Command& first);
  void note_failed_first() noexcept { first_.failed = true; }
  /// An abandoned command is free: the last one lets the connection go.
  void forget(Command& command);
  [[nodiscard]] std::span<Command> commands() noexcept { return {commands_.get(), command_count_}; }

 private:
  Connection(ReactorContext& reactor, FabricGroup& fabric, const Port& port, std::uint64_t id,
             const nvme::CmRequest& wanted, std::string peer, HostTable::Admission admission);
  void on_receive(const transport::ReceivedMessage& message);
  void begin(const transport::ReceivedMessage& message);
  void begin_waiting();
  void serve_credits();
  void drop_waiting_messages() noexcept;
  void close_controller() noexcept;
  void on_late();
  void go_if_done();
  void watch_progress();
  void judge_progress();

  ReactorContext& reactor_;
  FabricGroup& fabric_;
  const Port& port_;
  const std::uint64_t id_;
  const nvme::CmRequest wanted_;
  const std::string peer_;
  HostTable::Admission admission_;
  transport::Connection* transport_ = nullptr;  // the poll group's; null before attach() and after on_closed()
  ConnectionState state_ = ConnectionState::accepting;
  Controller* controller_ = nullptr;  // the table's, until detach()
  QueueTerms terms_;
  bool authenticated_ = true;
  bool told_failed_ = false;
  std::unique_ptr<Authentication> authentication_;
  NamespaceView namespaces_;  // the reactor's, of the controller's subsystem, as its host sees them
  std::uint16_t head_ = 0;
  std::uint32_t buffers_lkey_ = 0;
  std::uint32_t side_buffers_lkey_ = 0;

  std::uint32_t command_count_;
  std::unique_ptr<Command[]> commands_;
  std::span<std::byte> response_memory_;  // one completion entry per command, from the reactor's buffers
  CommandList free_;
  CommandList awaiting_read_;
  CommandList awaiting_send_;
  bool serving_ = false;
  std::uint32_t outstanding_ = 0;    // commands received and not answered
  std::uint32_t abandoned_ = 0;      // commands that wait for a store after the end
  std::vector<std::uint64_t> cids_;  // one bit per CID
  // Messages that came before a slot was free: the host may reuse a CID before our SEND's completion is seen.
  std::vector<transport::ReceivedMessage> waiting_;  // a ring of wanted_.host_sends
  std::size_t waiting_first_ = 0;
  std::size_t waiting_count_ = 0;

  Credits send_credits_;
  Credits read_credits_;
  FusedFirst first_;
  transport::Timer half_open_;    // until Connect, and until authentication
  transport::Timer second_late_;  // a first half does not wait for ever
  // A host that posts no receives is waited for by its fabric, for ever if need be (RNR): the timer runs while something is
  // posted, and whoever then has completed nothing from one end of it to the other has stalled.
  transport::Timer stalled_;
  std::uint64_t completions_ = 0;
  std::uint64_t completions_before_ = 0;  // when it began to run
  bool seems_stalled_ = false;            // it has run out once
};

}  // namespace rbt::target
