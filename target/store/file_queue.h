#pragma once
// One reactor's way to a file store.

#include <cstdint>
#include <memory>
#include <span>

#include "common/log.h"
#include "common/result.h"
#include "target/store/file_store.h"
#include "target/store/io_engine.h"
#include "target/store/store.h"
#include "target/store/store_request.h"

namespace rbt::target {

/// What a request is waiting for; one system call at a time.
struct FileOperation : IoOperation {
  enum class Step : std::uint8_t {
    buffer,   ///< wants a buffer; the pool wakes it
    ready,    ///< done well; poll() says so
    read,     ///< fills its buffer; woken by the I/O queue, as all that follow
    write,    ///< empties its buffer
    discard,  ///< forgets one range after the other
    zero,     ///< has the file zero a range, or writes zeroes over it, piece by piece
    flush,    ///< waits for an fdatasync that begins after it has come
  };
  StoreRequest* request = nullptr;
  Lease* lease = nullptr;              ///< buffer, read, write
  const BlockRange* ranges = nullptr;  ///< discard: those not yet begun
  std::size_t ranges_left = 0;
  std::uint64_t end = 0;  ///< zero: where it ends, in bytes
  Step step = Step::ready;
  std::uint8_t attempts = 0;  ///< of the same system call without any progress
  Durability durability = Durability::cached;
  StoreQueue::Deallocate deallocate = StoreQueue::Deallocate::no;
};

/// Lives on its reactor's thread.
class FileQueue final : public StoreQueue,
                        private IoHandler,
                        private transport::Source,
                        private transport::BufferWaiter {
 public:
  /// `own`: null, or `engine`, if no other queue uses it.
  FileQueue(FileStore& store, const StoreQueueContext& context, IoEngine& engine, std::unique_ptr<IoEngine> own);
  ~FileQueue() override;

  Progress acquire(Lease& lease, StoreRequest& request) override;
  Progress commit(Lease& lease, Durability durability, StoreRequest& request) override;
  void release(Lease& lease) noexcept override;
  Progress flush(StoreRequest& request) override;
  Progress discard(std::span<const BlockRange> ranges, StoreRequest& request) override;
  Progress write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) override;

 private:
  using Operations = RecordQueue<IoOperation>;

  // Source: what needs a turn of its own.
  std::size_t poll() override;
  [[nodiscard]] bool arm() override { return idle(); }
  [[nodiscard]] bool idle() const noexcept;
  void want_turn();
  void begin_flush();
  void look_again();

  void on_buffer_available() override;
  void hold(Lease& lease, std::span<std::byte> buffer) const noexcept;
  void begin_read(FileOperation& operation);

  void on_io_done(IoOperation& operation, std::int64_t result) override;
  void on_transferred(FileOperation& operation, std::uint64_t bytes);
  void on_failed(FileOperation& operation, int error);
  void on_flushed(std::int64_t result);
  void retry_or_end(FileOperation& operation, StoreStatus status);
  bool next_discard(FileOperation& operation);
  void next_zero(FileOperation& operation);
  void make_durable(FileOperation& operation);
  void end(FileOperation& operation, StoreStatus status);
  void report(const FileOperation& operation, int error);

  [[nodiscard]] std::uint64_t bytes(Lba lba) const noexcept;

  FileStore& store_;
  transport::Reactor& reactor_;
  transport::BufferPool& buffers_;
  std::unique_ptr<IoEngine> own_engine_;
  std::unique_ptr<IoQueue> io_;
  RateLimit log_limit_;
  Operations waiting_for_buffer_;
  Operations ready_;
  Operations flush_next_;        // the next fdatasync is for these
  Operations flush_running_;     // the fdatasync under way is for these
  IoOperation sync_;             // that fdatasync
  transport::Timer look_timer_;  // at the file's size, if somebody wants to hear of it
  bool listed_ = false;          // a source of the reactor
  std::size_t pending_ = 0;      // requests that have not been answered
};

}  // namespace rbt::target
