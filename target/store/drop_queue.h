#pragma once
// One reactor's way through drop-unflushed.

#include <memory>
#include <span>

#include "target/store/drop_unflushed.h"
#include "target/store/layer.h"
#include "target/store/relay.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// One request under way, and what it waits for.
struct DropWork final : StoreRequest {
  enum class Step : std::uint8_t {
    buffer,       ///< wants a buffer; the pool wakes it
    read,         ///< the store below reads what will be covered
    turn,         ///< others write down; the one before it wakes it
    room_below,   ///< has the turn: acquires a place for a run of blocks; woken by the store below, as all that follow
    write_below,  ///< commits that run
    end_below,    ///< the last thing that is asked of the store below: flush, discard or zeroes
  };
  enum class Aim : std::uint8_t {
    read,
    write,    ///< a buffer for one
    flush,    ///< all blocks, then a flush
    durable,  ///< its own blocks, durably
    room,     ///< all blocks, so that its own find room
    discard,
    zeroes,
  };
  explicit DropWork(DropQueue& q) : queue(q) {}
  void on_store_done(StoreStatus status) override;

  DropQueue& queue;
  DropWork* next = nullptr;
  StoreRequest* outer = nullptr;
  Lease* lease = nullptr;  ///< the caller's
  Lease below;             ///< the store's, for what is read or written down
  Overlay::Reading reading;
  bool covered = false;  ///< `reading` has begun
  Overlay::Version version = 0;
  BlockRange range;  ///< its own blocks
  Lba cursor;        ///< what lies before it has been written down
  Lba end;
  Blocks written;
  std::span<const BlockRange> ranges;
  StoreStatus outcome = StoreStatus::ok;
  Step step = Step::turn;
  Aim aim = Aim::read;
  Durability durability = Durability::cached;
  StoreQueue::Deallocate deallocate = StoreQueue::Deallocate::no;
  bool returned = false;  ///< the call that began it: until then nobody may be told
  bool ended = false;
};

/// Lives on its reactor's thread; `crash()` and the turn come from others.
class DropQueue final : public LayerQueue, private transport::BufferWaiter {
 public:
  DropQueue(DropUnflushed& store, std::unique_ptr<StoreQueue> below, std::unique_ptr<transport::BufferPool> buffers,
            transport::Reactor& reactor);
  ~DropQueue() override;

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;
  [[nodiscard]] std::uint64_t bytes_copied() const noexcept override;

  [[nodiscard]] transport::RegisteredMemory& memory() noexcept { return buffers_->memory(); }
  void on_done_below(DropWork& work, StoreStatus status);

 private:
  using Step = DropWork::Step;
  using Aim = DropWork::Aim;

  DropWork& make(Aim aim, StoreRequest& outer);
  Progress returned(DropWork& work);
  void end(DropWork& work, StoreStatus status);

  [[nodiscard]] bool own(const Lease& lease) const noexcept;
  [[nodiscard]] std::uint64_t bytes(const BlockRange& range) const noexcept;
  void want_buffer(DropWork& work);
  void on_buffer_available() override;
  [[nodiscard]] bool hold_buffer(DropWork& work);
  void has_buffer(DropWork& work);
  void cover(DropWork& work, StoreStatus status);

  Progress put(const BlockRange& range, Overlay::Segments data, Durability durability, Lease* lease,
               StoreRequest& request);
  void want_turn(DropWork& work);
  void take_turn(DropWork& work);
  void end_turn(DropWork& work, StoreStatus status);
  void write_down(DropWork& work);
  [[nodiscard]] bool copy_run(DropWork& work, StoreStatus status);
  [[nodiscard]] bool wrote_run(DropWork& work, StoreStatus status);
  void all_written(DropWork& work);
  void ask_below(DropWork& work, Progress progress);
  void ended_below(DropWork& work, StoreStatus status);

  DropUnflushed& store_;
  Overlay& overlay_;
  transport::Reactor& reactor_;
  Geometry geometry_;
  std::unique_ptr<transport::BufferPool> buffers_;
  RecordPool<DropWork> works_;
  RecordQueue<DropWork> waiting_;  // for a buffer
  std::uint64_t copied_ = 0;
};

}  // namespace rbt::target
