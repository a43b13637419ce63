#pragma once
// One reactor's way to a file store.

#include <cstdint>
#include <memory>
#include <span>

#include "common/log.h"
#include "common/result.h"
#include "target/store/file_store.h"
#include "target/store/io_engine.h"
#include "target/store/staged_queue.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// What a request is waiting for; one system call at a time.
struct FileOperation : StagedRequest, IoOperation {
  enum class Step : std::uint8_t {
    read,     ///< fills its buffer; woken by the I/O queue, as all that follow
    write,    ///< empties its buffer
    discard,  ///< forgets a range
    zero,     ///< has the file zero a range, or writes zeroes over it, piece by piece
    flush,    ///< waits for an fdatasync that begins after it has come
  };
  Step step = Step::read;
  std::uint8_t attempts = 0;  ///< of the same system call without any progress
  Durability durability = Durability::cached;
  StoreQueue::Deallocate deallocate = StoreQueue::Deallocate::no;
};

/// Lives on its reactor's thread.
class FileQueue final : public StagedQueue, private IoHandler, private transport::Source {
 public:
  /// `own`: null, or `engine`, if no other queue uses it.
  FileQueue(FileStore& store, const StoreQueueContext& context, IoEngine& engine, std::unique_ptr<IoEngine> own);
  ~FileQueue() override;

  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;

 private:
  using Operations = RecordQueue<IoOperation>;

  // StagedQueue
  [[nodiscard]] bool read_only() const noexcept override { return store_.medium().geometry().read_only; }
  [[nodiscard]] StagedRequest& make_read(StoreRequest& request) override;
  [[nodiscard]] Progress start(StagedRequest& request) override;

  // Source: what needs a turn of its own.
  std::size_t poll() override;
  [[nodiscard]] bool arm() override { return idle(); }
  [[nodiscard]] bool idle() const noexcept;
  void want_turn();
  void look_again();

  FileOperation& make(StoreRequest& request, FileOperation::Step step) noexcept;
  [[nodiscard]] bool behind_end(const FileOperation& operation) const noexcept;
  Progress start_discard(FileOperation& operation);
  void next_zero(FileOperation& operation);
  void make_durable(FileOperation& operation);

  void on_io_done(IoOperation& operation, std::int64_t result) override;
  void on_transferred(FileOperation& operation, std::uint64_t bytes);
  void on_failed(FileOperation& operation, int error);
  void on_flushed(std::int64_t result);
  void on_done(FileOperation& operation);
  void retry_or_end(FileOperation& operation, StoreStatus status);
  void report(const FileOperation& operation, int error);

  FileStore& store_;
  std::unique_ptr<IoEngine> own_engine_;
  std::unique_ptr<IoQueue> io_;
  RateLimit log_limit_;
  Operations flush_next_;        // the next fdatasync is for these
  Operations flush_running_;     // the fdatasync under way is for these
  IoOperation sync_;             // that fdatasync
  transport::Timer look_timer_;  // at the file's size, if somebody wants to hear of it
  bool listed_ = false;          // a source of the reactor
};

}  // namespace rbt::target
