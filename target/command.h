#pragma once
// One command of a host, from capsule to completion. Slots are made with their connection and used again and again.

#include <cstdint>
#include <optional>
#include <span>

#include "common/nvme/capsule.h"
#include "common/nvme/sgl.h"
#include "common/nvme/status.h"
#include "common/units.h"
#include "target/command_state.h"
#include "target/namespace_table.h"
#include "target/status.h"
#include "target/store/store.h"
#include "target/transfer.h"
#include "transport/memory/buffer_pool.h"
#include "transport/work.h"

namespace rbt::target {

class Command;
class Connection;
class Controller;
class NamespaceView;
struct Operation;

/// What stands before the next command of a queue: the first half of a fused pair, or that it came and failed.
struct FusedFirst {
  Command* command = nullptr;
  bool failed = false;
};

/// What a command needs before it can be executed: what its operation makes of the entry.
struct Plan {
  enum class Memory : std::uint8_t {
    none,         ///< it moves no data
    buffer,       ///< a buffer of the reactor's
    side_buffer,  ///< one of its side pool: for who asks the store for memory, too (ReactorContext::side_buffers())
    blocks,       ///< the store's memory for `range`
  };
  Memory memory = Memory::none;
  /// The data pointer may name more than `bytes` (peers send whole pages of Dataset Management ranges).
  bool more_tolerated = false;
  std::uint32_t bytes = 0;        ///< of data to move
  std::uint32_t extra_bytes = 0;  ///< of buffer behind the data, for the operation's own use
  ServedNamespace* ns = nullptr;  ///< of I/O commands for one namespace
  BlockRange range = {};
  Durability durability = Durability::cached;
  /// Blocks that the command changes, so that it takes turns (turns.h).
  enum class Changes : std::uint8_t {
    nothing,
    range,   ///< of `range`, from before it has memory until its end
    pieces,  ///< of ranges that it learns later, one take_turn() after the other
  };
  Changes changes = Changes::nothing;
};

/// How far an operation got.
enum class Step : std::uint8_t {
  done,     ///< status and result are set
  pending,  ///< on_store_done() comes
  held,     ///< complete_held() comes
};

/// Belongs to its connection's reactor.
class Command final : public StoreRequest, public transport::BufferWaiter {
 public:
  void bind(Connection& connection, std::uint32_t index, std::span<std::byte> response) noexcept;

  /// A capsule has come for this free slot.
  void start(const transport::ReceivedMessage& message);
  /// There may be credits. False: it needs more and stays first in line.
  [[nodiscard]] bool post_reads();
  [[nodiscard]] bool post_response();
  /// `sends` of its work requests are complete, `reads` of them RDMA READs.
  void on_posted_done(std::uint32_t sends, std::uint32_t reads);
  /// Stops it, if it has changed nothing yet: true, and it is answered with `why` now or soon.
  [[nodiscard]] bool abort(nvme::StatusCode why = nvme::StatusCode::abort_requested);
  /// What is left of it may still change blocks, or answer with them: not after it has been stopped or has been carried out.
  [[nodiscard]] bool touches_blocks() const noexcept;
  /// Received, not answered, and called so by its host.
  [[nodiscard]] bool is_live(Cid cid) const noexcept { return owns_cid_ && sqe_.command_id() == cid; }
  /// Which of all that this slot has seen: for messages that may come too late.
  [[nodiscard]] std::uint32_t ticket() const noexcept { return ticket_; }
  [[nodiscard]] std::uint32_t index() const noexcept { return index_; }
  /// Ends a held command.
  void complete_held(nvme::Status status, std::uint64_t result);
  /// The connection is gone for good. True: a store still owes an answer, and forget() comes later.
  [[nodiscard]] bool abandon();

  /// Ends a first half that waits for its second.
  void complete_first(nvme::Status status);

  void on_store_done(StoreStatus status) override;
  void on_buffer_available() override;
  /// What take_turn() or await_turns() has waited for.
  void on_turn();

  // What operations see.
  [[nodiscard]] const nvme::SubmissionQueueEntry& sqe() const noexcept { return sqe_; }
  [[nodiscard]] Connection& connection() const noexcept { return *connection_; }
  /// Not for Connect.
  [[nodiscard]] Controller& controller() const noexcept;
  [[nodiscard]] const Plan& plan() const noexcept { return plan_; }
  /// The data: plan().bytes of the buffer.
  [[nodiscard]] std::span<std::byte> buffer() const noexcept { return buffer_.first(plan_.bytes); }
  [[nodiscard]] std::span<std::byte> extra() const noexcept {
    return buffer_.subspan(buffer_.size() - plan_.extra_bytes);
  }
  [[nodiscard]] Lease& lease() noexcept { return lease_; }
  /// The namespaces of its controller's subsystem that its host sees, as this reactor serves them. Not for Connect.
  [[nodiscard]] const NamespaceView& namespaces() const noexcept;
  /// Uses `ns` (null: none) from now on, in place of any other: as long as that is so it does not go.
  void hold(ServedNamespace* ns) noexcept;
  [[nodiscard]] const ServedNamespace* held() const noexcept { return held_; }
  /// A store owes an answer.
  [[nodiscard]] bool in_store() const noexcept { return store_call_ != StoreCall::none; }
  /// Where its blocks are, for operations that learn it from their data.
  void set_range(BlockRange range) noexcept { plan_.range = range; }
  /// The error log says that the byte of the entry (and its bit) is what is wrong with a command that is refused.
  void blame(std::uint8_t byte, std::uint8_t bit = 0) noexcept {
    blamed_ = static_cast<std::uint16_t>(bit << 8 | byte);
  }
  void set_result(std::uint64_t result) noexcept { result_ = result; }
  /// For operations of several store operations: how far they got. 0 at first.
  [[nodiscard]] std::uint32_t& progress() noexcept { return progress_; }
  Step finish(nvme::Status status) noexcept {
    status_ = status;
    return Step::done;
  }
  /// What the store answered, as a Step.
  Step store(Progress progress) noexcept;
  /// For operations that look at blocks themselves: the store's memory for `range`, for the CPU, as lease(). Nothing: it is
  /// there. Else what to return: execute() is called again when it is, or the store could not.
  [[nodiscard]] std::optional<Step> take_blocks(BlockRange range, Intent intent);
  void give_back_blocks() noexcept;
  /// Until end_turn() nobody else changes `range`, which has at most RangeLock::kBlocksMax blocks; nor does who goes freely.
  /// Returns as take_blocks(), before which it comes.
  [[nodiscard]] std::optional<Step> take_turn(BlockRange range);
  void end_turn() noexcept;
  /// It has the right to all blocks, and there is no need for turns.
  [[nodiscard]] bool goes_freely() const noexcept { return turn_ == Turn::freely; }
  /// The range of take_turn(), in a place that stays.
  [[nodiscard]] const BlockRange& turn() const noexcept { return claim_.range; }
  /// Pairs: nobody goes freely. Returns as take_blocks().
  [[nodiscard]] std::optional<Step> await_turns();
  /// The first half of this pair has succeeded.
  void set_compared() noexcept { compared_ = true; }

  [[nodiscard]] CommandState state() const noexcept { return state_; }

 private:
  friend class CommandList;
  enum class StoreCall : std::uint8_t { none, acquire, take_blocks, turn, turns, execute };
  enum class Turn : std::uint8_t { none, freely, taken };
  enum class Fetched : std::uint8_t { nothing, firsts, own };

  // The life of a command, in order.
  [[nodiscard]] nvme::Expected<Plan> decode();
  [[nodiscard]] bool fuse(const FusedFirst& before, nvme::Expected<Plan>& plan);
  void join(const FusedFirst& before, nvme::Expected<Plan>& plan);
  void acquire();
  [[nodiscard]] bool enter_blocks();
  void find_memory();
  void acquired(StoreStatus status);
  void pull();
  [[nodiscard]] bool fetch(Command& from, std::span<const transport::Segment> to);
  void copy_in(std::span<const std::byte> from, std::span<const transport::Segment> to) noexcept;
  void execute();
  void executed(Step step);
  [[nodiscard]] bool stopped();
  [[nodiscard]] nvme::Status judge_access(const Plan& plan) const noexcept;
  void settle_first();
  void respond();
  void finished();

  void advance(CommandState next) noexcept;
  void release_message() noexcept;
  void release_memory() noexcept;
  [[nodiscard]] transport::BufferPool& pool() const noexcept;
  void account() noexcept;
  void log_failure() noexcept;
  [[nodiscard]] bool sends_data() const noexcept;
  [[nodiscard]] std::span<const transport::Segment> segments() const noexcept;
  void write_response() noexcept;

  Connection* connection_ = nullptr;
  Command* next_ = nullptr;  // in a CommandList
  std::uint32_t index_ = 0;
  CommandState state_ = CommandState::free;
  StoreCall store_call_ = StoreCall::none;
  bool owns_cid_ = false;
  bool owns_message_ = false;
  bool owns_lease_ = false;
  bool compared_ = false;
  nvme::StatusCode stop_ = nvme::StatusCode::success;  // not success: that is its end, as soon as it gets to stopped()
  Turn turn_ = Turn::none;
  Fetched fetched_ = Fetched::nothing;
  nvme::Status status_;
  std::uint32_t ticket_ = 0;
  std::uint16_t blamed_ = kNotSaid;
  std::uint32_t posted_sends_ = 0;  // work requests not known to be complete
  std::uint32_t posted_reads_ = 0;  // of these, RDMA READs
  std::uint32_t progress_ = 0;
  std::uint64_t result_ = 0;
  const Operation* operation_ = nullptr;
  nvme::SubmissionQueueEntry sqe_;
  nvme::DataPointer data_;
  Plan plan_;
  ServedNamespace* held_ = nullptr;
  Command* first_ = nullptr;  // the other half of this pair, which waits
  TurnClaim claim_;
  Transfer transfer_;
  Lease lease_;
  std::span<std::byte> buffer_;
  transport::Segment buffer_segment_;
  transport::Segment extra_segment_;
  transport::ReceivedMessage message_;
  std::span<std::byte> response_;
};

}  // namespace rbt::target
